"""How CPU kernels are compiled, and where their machine code is kept for later processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.core.config

_config: Any = numba.core.config  # its settings come into being at run time
_Function = TypeVar("_Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {
    # What lets sums be reordered for vector units. NaN and infinity keep their meaning.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # Under Python's own error model a division is a branch, which keeps loops from vector units.
    "error_model": "numpy",
}


def compiled(function: _Function) -> _Function:
    """Compiles for this processor, without the interpreter lock.

    A function that encloses another compiled one is never found in the cache again: such a one
    encloses numbers and arrays only.
    """
    return cast("_Function", kept(lambda options: numba.njit(function, nogil=True, **options)))


def compiled_in_order(function: _Function) -> _Function:
    """As `compiled`, but floats are added up in the order that is written, wherever they stand."""

    def compile_with(options: dict[str, Any]) -> Any:
        options = options | {"fastmath": False}
        return numba.njit(function, nogil=True, **options)

    return cast("_Function", kept(compile_with))


def kept(compile_with: Callable[[dict[str, Any]], Any]) -> Any:
    """What `compile_with` makes of the options, kept for later processes where a folder can be
    written."""
    with _cache_folder():
        try:
            return compile_with({"cache": True, **OPTIONS})
        except RuntimeError:  # numba found no folder to write to
            return compile_with(OPTIONS)


@contextmanager
def _cache_folder() -> Generator[None]:
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(_folder())
    try:
        yield
    finally:
        _config.CACHE_DIR = before


@cache
def _folder() -> Path:
    """Named by all that kernels are made of: numba itself would notice changes of a kernel's own
    file only, not of what it calls or reads in another."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    parent = _config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(parent)) / "chorale" / f"kernels-{digest.hexdigest()[:16]}"
