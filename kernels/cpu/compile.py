"""How CPU kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What lets sums be reordered for vector units. NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function: _Function) -> _Function:
    """Compiles for this processor, without the interpreter lock; kept on disk for later processes
    where a folder for that can be written.

    numba notices changes of a kernel's own file only: after editing something it calls in another
    file, remove the __pycache__ beside it.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH}
    try:
        return cast("_Function", njit(function, cache=True, **options))
    except RuntimeError:  # numba found no folder to write to
        return cast("_Function", njit(function, **options))
