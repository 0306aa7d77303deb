"""Bringing small values from the host to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

_NUMPY: dict[torch.dtype, type[np.generic[Any]]] = {
    torch.int64: np.int64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


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
    # Pinned memory comes from torch's cache, which keeps it until the copy has been made.
    pinned = torch.empty(array.shape, dtype=dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)
