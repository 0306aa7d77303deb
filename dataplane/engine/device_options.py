"""What an engine computes on and in, from its options."""

from __future__ import annotations

import torch

from dataplane.errors import DataPlaneError, UnsupportedModelError
from dataplane.models.config import ModelConfig

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CUDA_POOL_SHARE = 0.85  # of the memory that is free once the weights are loaded


def pick_device(name: str, rank: int = 0, size: int = 1) -> torch.device:
    """rank: of `size` that share the model, a device each; on CPU they share the cores."""
    device = _device(name)
    if device.type != "cuda" or size == 1:
        return device
    if (found := torch.cuda.device_count()) < size:
        raise DataPlaneError(
            "DEVICE_MISSING",
            f"--tensor-parallel {size}: torch finds {found} GPUs; use as many at most, or"
            " --device cpu",
            {"tensor_parallel": str(size), "num_devices": str(found)},
        )
    return torch.device("cuda", rank)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataPlaneError(
            "DEVICE_MISSING", "--device cuda: torch finds no GPU; use auto or cpu", {}
        )
    if name not in ("cpu", "cuda"):
        raise DataPlaneError("DEVICE_UNKNOWN", f"--device {name}: auto, cpu or cuda", {})
    return torch.device(name)


def pick_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's dtype, but float32 on a CPU without bfloat16 instructions."""
    if name == "auto":
        name = config.dtype
        if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            name = "float32"
        if device.type == "cpu" and name == "float16":
            name = "float32"
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise UnsupportedModelError(
            "DTYPE_UNKNOWN",
            f"--dtype {name}: give auto or one of {', '.join(_DTYPES)}",
            {"dtype": name},
        )
    return dtype


def cuda_pool_bytes(device: torch.device, reserved_bytes: int = 0) -> int:
    """What a page pool may take there now."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(free - reserved_bytes, 0) * _CUDA_POOL_SHARE)
