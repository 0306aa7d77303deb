"""Bringing small values from the host to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

_NUMPY: dict[torch.dtype, type[np.generic[Any]]] = {
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
_TORCH = {np.dtype(array): tensor for tensor, array in _NUMPY.items()}


def staged(values: ArrayLike, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of its own of host values (numbers, or rows of them) on `device`.

    To a GPU it goes through pinned memory, in the stream's order: a copy from pageable memory would
    make the host wait until all that was launched before has run. Numpy makes the array: torch
    takes several times as long for a few numbers, lets another thread have the interpreter, and
    pins none that it makes of an array.
    """
    array = np.array(values, dtype=_NUMPY[dtype])
    if device.type != "cuda":
        return torch.from_numpy(array)
    pinned = _pinned(array.shape, dtype)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)


def staged_together(
    parts: Sequence[np.ndarray[Any, Any]], device: torch.device
) -> list[torch.Tensor]:
    """Arrays of one type on `device`: on CPU these very arrays; to a GPU as `staged`, in one copy,
    where each begins at a multiple of 16 bytes."""
    if device.type != "cuda":
        return [torch.from_numpy(part) for part in parts]
    step = 16 // parts[0].itemsize
    starts = np.cumsum([0, *(-(-part.size // step) * step for part in parts)]).tolist()
    pinned = _pinned((starts[-1],), _TORCH[parts[0].dtype])
    array = pinned.numpy()
    for start, part in zip(starts, parts, strict=False):
        array[start : start + part.size] = part.reshape(-1)
    sent = pinned.to(device, non_blocking=True)
    return [
        sent[start : start + part.size].view(part.shape)
        for start, part in zip(starts, parts, strict=False)
    ]


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """From torch's cache of pinned memory, which keeps it until copies from it have been made."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
