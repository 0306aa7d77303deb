"""Which tensors Triton kernels take, and what their device is called in the tuning tables."""

from __future__ import annotations

import os
from functools import cache

import torch

INTERPRETER = "interpreter"


def uses_triton(tensor: torch.Tensor) -> bool:
    """CUDA and ROCm tensors; with TRITON_INTERPRET=1 in the environment, CPU tensors too."""
    return tensor.is_cuda or interpreting()


def interpreting() -> bool:
    """Triton reads the variable when kernels are imported: set it before the process starts."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device_name(device: torch.device) -> str:
    """As "sm_90" or "gfx942"; kernels that the interpreter runs have tiles of their own."""
    return INTERPRETER if interpreting() else _device_name(device.index or 0)


@cache
def _device_name(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
