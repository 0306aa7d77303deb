"""Bringing small values from the host to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def staged(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of host values (numbers, or rows of them) on `device`.

    To a GPU it goes through pinned memory, in the stream's order: a copy from pageable memory would
    make the host wait until all that was launched before has run.
    """
    if device.type == "cuda":
        return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(values, dtype=dtype)
