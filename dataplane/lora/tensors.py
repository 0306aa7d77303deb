"""An adapter's stored tensors as torch's."""

from __future__ import annotations

import torch

from storage.adapter.manifest import ParsedAdapter
from storage.adapter.weights import TensorRef

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_tensor(adapter: ParsedAdapter, ref: TensorRef) -> torch.Tensor:
    """The tensor in its stored dtype, host memory of its own."""
    return _tensor(adapter.view(ref), ref).view(ref.shape)


def stored_rows(adapter: ParsedAdapter, ref: TensorRef, start: int, end: int) -> torch.Tensor:
    """As `stored_tensor`, of a matrix' rows [start, end)."""
    view, width = adapter.view(ref), ref.shape[1]
    row_bytes = width * _DTYPES[ref.dtype].itemsize
    return _tensor(view[start * row_bytes : end * row_bytes], ref).view(end - start, width)


def _tensor(view: memoryview, ref: TensorRef) -> torch.Tensor:
    # A copy: tensors over read-only memory are undefined behaviour in torch.
    return torch.frombuffer(bytearray(view), dtype=_DTYPES[ref.dtype])
