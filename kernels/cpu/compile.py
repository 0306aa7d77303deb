"""How CPU kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {
    # What lets sums be reordered for vector units. NaN and infinity keep their meaning.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # Under Python's own error model a division is a branch, which keeps loops from vector units.
    "error_model": "numpy",
}


def compiled(function: _Function) -> _Function:
    """Compiles for this processor, without the interpreter lock; kept on disk for later processes
    where a folder for that can be written.

    numba notices changes of a kernel's own file only: after editing something it calls in another
    file, remove the __pycache__ beside it. A function that encloses another compiled one is never
    found again: such a one encloses numbers and arrays only.
    """
    try:
        return cast("_Function", njit(function, nogil=True, cache=True, **OPTIONS))
    except RuntimeError:  # numba found no folder to write to
        return cast("_Function", njit(function, nogil=True, **OPTIONS))
