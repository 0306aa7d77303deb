"""Safetensors files of a base model, read into memory that is there already.

Not mapped: pages of a mapping count as this process's memory for as long as it is open, which would
double what loading a checkpoint takes.

File: u64 little-endian header length, JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import torch

from dataplane.errors import CheckpointError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Of weights as they are; the others are parts of quantised ones."""
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_MAX_HEADER_BYTES = 100 << 20
_STAGING_BYTES = 8 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: `start` counts bytes from the file's beginning."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, each proved to lie within it.

    Raises: CheckpointError.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise _unreadable(path, f"its header has {length} bytes of the file's {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from None
    except (ValueError, RecursionError):
        raise _unreadable(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is not an object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


class TensorReader:
    """Reads tensors of open files. It keeps one small buffer for conversions: allocating it anew
    for each tensor would scatter the heap."""

    def __init__(self) -> None:
        self._staging = torch.empty(_STAGING_BYTES, dtype=torch.uint8)

    def read_into(self, target: torch.Tensor, tensor: StoredTensor, file: BinaryIO) -> None:
        """Reads a tensor into `target`: as many elements, contiguous, any dtype and device.

        file: `tensor.path`, open, unbuffered. Raises: CheckpointError.
        """
        flat = target.view(-1)
        file.seek(tensor.start)
        if target.dtype == tensor.dtype and target.device.type == "cpu":
            _fill(flat, tensor, file)
            return
        staging = self._staging.view(tensor.dtype)
        for start in range(0, flat.numel(), staging.numel()):
            part = staging[: min(staging.numel(), flat.numel() - start)]
            _fill(part, tensor, file)
            flat[start : start + part.numel()].copy_(part)


def _fill(part: torch.Tensor, tensor: StoredTensor, file: BinaryIO) -> None:
    buffer = memoryview(cast("Any", part.view(torch.uint8).numpy()))
    while buffer:
        count = file.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise _unreadable(tensor.path, f"it ends within {tensor.name[:200]}")
        buffer = buffer[count:]


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    shape, offsets, kind = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    shown = name[:200]
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _unreadable(path, f"{shown} has no sound shape and data_offsets")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise CheckpointError(
            "CHECKPOINT_DTYPE",
            f"{path.name}: {shown} has dtype {str(kind)[:40]}; supported: {', '.join(_DTYPES)}",
            {"file": path.name, "tensor": shown},
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize or data_start + end > size:
        raise _unreadable(path, f"{shown} does not fit its bytes: the file is cut or damaged")
    return StoredTensor(path, name, dtype, tuple(shape), data_start + begin)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48
        for item in value
    )


def _unreadable(path: Path, problem: str) -> CheckpointError:
    return CheckpointError("CHECKPOINT_UNREADABLE", f"{path.name}: {problem}", {"file": path.name})
