"""Safetensors, read without a copy: header checks, tensor extents, NaN and infinity detection.

File: u64 little-endian header length, JSON header, then the tensors' bytes laid end to end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from storage import pace
from storage.adapter.json_input import load_object
from storage.errors import (
    AdapterTooLargeError,
    BadWeightsError,
    NonFiniteError,
    PickleRefusedError,
    excerpt,
)
from storage.limits import DEFAULT_LIMITS, AdapterLimits

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_EXPONENT_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_MAX_DIMS = 8
_MAX_NAME_CHARS = 512
_MAX_MARKS = 1 << 19  # a matrix has eight; __metadata__ may have some, too
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor in the file: bytes [start, end) counted from the file's beginning.

    `name` is the key as written. `start` need not be aligned to the item size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header(
    data: bytes | memoryview, *, limits: AdapterLimits = DEFAULT_LIMITS
) -> dict[str, TensorRef]:
    """Extents of every tensor, in the order of their bytes.

    Raises: PickleRefusedError, BadWeightsError, AdapterTooLargeError.
    """
    view = memoryview(data).cast("B")
    if len(view) > limits.max_weights_bytes:
        raise AdapterTooLargeError(
            f"adapter_model.safetensors has {len(view)} bytes; the limit is "
            f"{limits.max_weights_bytes}",
            metadata={"size_bytes": str(len(view)), "limit_bytes": str(limits.max_weights_bytes)},
        )
    header_bytes = header_size(bytes(view[:8]), len(view), limits=limits)
    return extents_of(bytes(view[8 : 8 + header_bytes]), len(view), limits=limits)


def header_size(
    beginning: bytes, file_bytes: int, *, limits: AdapterLimits = DEFAULT_LIMITS
) -> int:
    """Bytes of the JSON header, which the file has behind its first 8, `beginning`.

    Raises: PickleRefusedError, BadWeightsError.
    """
    _refuse_pickle(beginning)
    if file_bytes < 8:
        raise BadWeightsError(
            f"adapter_model.safetensors is truncated: {file_bytes} bytes, fewer than the 8 of its "
            "header length"
        )
    header_bytes = int.from_bytes(beginning, "little")
    if header_bytes > limits.max_header_bytes:
        raise BadWeightsError(
            f"safetensors header of {header_bytes} bytes exceeds the limit of "
            f"{limits.max_header_bytes}"
        )
    if 8 + header_bytes > file_bytes:
        raise BadWeightsError(
            f"adapter_model.safetensors is truncated: the header needs {header_bytes} bytes, the "
            f"file has {file_bytes - 8} after the length"
        )
    return header_bytes


def extents_of(
    raw: bytes, file_bytes: int, *, limits: AdapterLimits = DEFAULT_LIMITS
) -> dict[str, TensorRef]:
    """As parse_header, of a file of `file_bytes` whose JSON header is `raw`: no more of it has to
    be there. Raises: BadWeightsError."""
    if not raw.startswith(b"{"):
        raise BadWeightsError("safetensors header does not begin with '{'")
    header = load_object(
        raw,
        what="safetensors header",
        max_depth=4,
        max_marks=_MAX_MARKS,
        error=BadWeightsError,
    )
    _check_metadata(header.pop("__metadata__", None))
    if len(header) > limits.max_tensors:
        raise BadWeightsError(
            f"safetensors file lists {len(header)} tensors; the limit is {limits.max_tensors}"
        )
    data_start = 8 + len(raw)
    refs = sorted(
        (_tensor_ref(name, entry, data_start) for name, entry in header.items()),
        key=lambda ref: (ref.start, ref.end),
    )
    position = data_start
    for ref in refs:
        if ref.start != position:
            problem = "overlaps the tensor before it" if ref.start < position else "leaves a gap"
            raise BadWeightsError(
                f"tensor {excerpt(ref.name)} begins at byte {ref.start - data_start} and {problem}"
            )
        position = ref.end
    if position != file_bytes:
        raise BadWeightsError(
            f"tensors end at byte {position} but the file has {file_bytes}: truncated or padded"
        )
    return {ref.name: ref for ref in refs}


def check_finite(view: memoryview, ref: TensorRef) -> None:
    """Refuse NaN and infinities. `view`: the tensor's own bytes, e.g. from `ParsedAdapter.view`.

    Raises: NonFiniteError naming the tensor and the first bad element.
    """
    item_bytes = ITEM_BYTES[ref.dtype]
    mask = _EXPONENT_BITS[ref.dtype]
    for offset in range(0, len(view), _CHUNK_BYTES):
        chunk = view[offset : offset + _CHUNK_BYTES]
        bits = np.frombuffer(chunk, dtype=np.dtype(f"<u{item_bytes}"))
        bad = (bits & bits.dtype.type(mask)) == mask
        if bad.any():
            index = offset // item_bytes + int(bad.argmax())
            raise NonFiniteError(
                f"tensor {excerpt(ref.name)} holds NaN or infinity at element {index}: "
                "the adapter diverged in training or was damaged; save a sound checkpoint",
                metadata={"tensor": ref.name[:200], "element": str(index)},
            )
        pace.rest()


def _refuse_pickle(magic: bytes) -> None:
    # PyTorch writes a zip archive, or in its older form a bare pickle (protocol 2 to 5).
    if magic[:4] == b"PK\x03\x04" or (magic[:1] == b"\x80" and magic[1:2] in b"\x02\x03\x04\x05"):
        # A safetensors file whose header has 0x0X80 bytes starts the same; it has zeros above.
        if magic[3:8] == b"\x00" * 5 and magic[:4] != b"PK\x03\x04":
            return
        raise PickleRefusedError(
            "adapter_model.safetensors holds a PyTorch pickle or zip archive under another name; "
            "pickle is never read. Convert it with safetensors.torch.save_file"
        )


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in cast("dict[str, object]", metadata).values()
    ):
        raise BadWeightsError("safetensors __metadata__ must map strings to strings")


def _tensor_ref(name: str, entry: object, data_start: int) -> TensorRef:
    label = f"tensor {excerpt(name)}"
    if not name or len(name) > _MAX_NAME_CHARS:
        raise BadWeightsError(f"{label}: names have 1 to {_MAX_NAME_CHARS} characters")
    if not isinstance(entry, dict):
        raise BadWeightsError(f"{label} must be described by an object, not {excerpt(entry)}")
    fields = cast("dict[str, Any]", entry)
    if fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadWeightsError(f"{label} must have exactly dtype, shape and data_offsets")
    dtype: object = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadWeightsError(
            f"{label} has dtype {excerpt(dtype)}; supported are {', '.join(ITEM_BYTES)}"
        )
    shape = _sizes(fields["shape"])
    if shape is None or len(shape) > _MAX_DIMS:
        raise BadWeightsError(
            f"{label} has shape {excerpt(fields['shape'])}; it must be a list of at most "
            f"{_MAX_DIMS} sizes"
        )
    offsets = _sizes(fields["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadWeightsError(f"{label} has data_offsets that are not [begin, end]")
    start, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != needed:
        raise BadWeightsError(
            f"{label} of dtype {dtype} and shape {list(shape)} needs {needed} bytes, "
            f"its offsets hold {end - start}"
        )
    return TensorRef(name, dtype, shape, data_start + start, data_start + end)


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    sizes = tuple(
        item
        for item in items
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48
    )
    return sizes if len(sizes) == len(items) else None
