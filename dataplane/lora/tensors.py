"""An adapter's stored tensors as torch's."""

from __future__ import annotations

import torch

from storage.adapter.manifest import ParsedAdapter
from storage.adapter.weights import TensorRef

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_tensor(adapter: ParsedAdapter, ref: TensorRef) -> torch.Tensor:
    """The tensor in its stored dtype, host memory of its own."""
    # A copy: tensors over read-only memory are undefined behaviour in torch.
    data = bytearray(adapter.view(ref))
    return torch.frombuffer(data, dtype=_DTYPES[ref.dtype]).view(ref.shape)
