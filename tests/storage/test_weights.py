import json
import pickle
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from storage.adapter.weights import check_finite, parse_header
from storage.errors import (
    AdapterTooLargeError,
    BadWeightsError,
    NonFiniteError,
    PickleRefusedError,
)
from storage.limits import AdapterLimits
from tests.storage.samples import safetensors, tensor, with_header


def header_of(entries: dict[str, Any], body: bytes = b"") -> bytes:
    return with_header(json.dumps(entries).encode(), body)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_agrees_with_the_safetensors_library() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(5, dtype=np.float16),
        "c": np.zeros((0, 4), dtype=np.float32),
    }
    data = save(arrays, metadata={"format": "pt"})
    refs = parse_header(data)
    assert refs.keys() == arrays.keys()
    for name, array in arrays.items():
        ref = refs[name]
        assert ref.shape == array.shape
        assert data[ref.start : ref.end] == array.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (100).to_bytes(8, "little") + b"{}",
        (1 << 63).to_bytes(8, "little") + b"{}",
        with_header(b""),
        with_header(b" {}"),
        with_header(b"[]"),
        with_header(b"{"),
        with_header(b'{"a": NaN}'),
        with_header(b"{" + b'"a": {' * 100_000),
        with_header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\x00" * 4,
        ),
        header_of({"__metadata__": {"a": 1}}),
        header_of({"__metadata__": ["a"]}),
        header_of({"a": []}),
        header_of({"": entry()}, b"\x00" * 8),
        header_of({"x" * 513: entry()}, b"\x00" * 8),
        header_of({"a": entry(dtype="I8")}, b"\x00" * 8),
        header_of({"a": entry(dtype="F64")}, b"\x00" * 8),
        header_of({"a": entry(dtype=["F32"])}, b"\x00" * 8),
        header_of({"a": entry(shape="2")}, b"\x00" * 8),
        header_of({"a": entry(shape=[-2])}, b"\x00" * 8),
        header_of({"a": entry(shape=[2.0])}, b"\x00" * 8),
        header_of({"a": entry(shape=[True, 2])}, b"\x00" * 8),
        header_of({"a": entry(shape=[1] * 8 + [2])}, b"\x00" * 8),
        header_of({"a": entry(shape=[1 << 60])}, b"\x00" * 8),
        header_of({"a": entry(offsets=[0])}, b"\x00" * 8),
        header_of({"a": entry(offsets=[8, 0])}, b"\x00" * 8),
        header_of({"a": entry(offsets=[0, 4])}, b"\x00" * 4),
        header_of({"a": {**entry(), "extra": 1}}, b"\x00" * 8),
        header_of({"a": {"dtype": "F32", "shape": [2]}}, b"\x00" * 8),
        header_of({"a": entry(), "b": entry(offsets=[4, 12])}, b"\x00" * 12),
        header_of({"a": entry(), "b": entry()}, b"\x00" * 8),
        header_of({"a": entry(), "b": entry(offsets=[9, 17])}, b"\x00" * 17),
        header_of({"a": entry(offsets=[1, 9])}, b"\x00" * 9),
        header_of({"a": entry()}, b"\x00" * 7),
        header_of({"a": entry()}, b"\x00" * 9),
    ],
)
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadWeightsError) as caught:
        parse_header(data)
    assert caught.value.reason == "BAD_WEIGHTS"
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "values", [b"1," * 600_000, b"[]," * 300_000, b"{}," * 300_000, (b"9" * 4000 + b",") * 10]
)
def test_headers_that_would_hold_up_other_threads_are_not_parsed(values: bytes) -> None:
    """Millions of values, or integers of thousands of digits, fit the bound on the header."""
    with pytest.raises(BadWeightsError, match=r"too many values|4000 digits"):
        parse_header(with_header(b'{"a": [' + values + b"1]}"))


def test_as_many_tensors_as_may_be_pass_with_metadata() -> None:
    num_tensors = AdapterLimits().max_tensors
    entries = {f"t{n}": entry(shape=[1, 1, 1, 0], offsets=[0, 0]) for n in range(num_tensors)}
    metadata = {"format": "pt", "commas": "," * 100_000}
    assert len(parse_header(header_of({"__metadata__": metadata, **entries}))) == num_tensors


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_refused_as_such(protocol: int) -> None:
    with pytest.raises(PickleRefusedError, match="pickle"):
        parse_header(pickle.dumps({"a": [1] * 100}, protocol=protocol))


def test_zip_archive_is_refused_as_such() -> None:
    with pytest.raises(PickleRefusedError) as caught:
        parse_header(b"PK\x03\x04" + b"\x00" * 100)
    assert caught.value.reason == "PICKLE_REFUSED"


def test_a_header_length_that_looks_like_pickle_is_not_mistaken() -> None:
    # 0x0280 = 640 begins with the bytes of pickle protocol 2.
    header = json.dumps({"a": entry()}).encode().ljust(0x0280)
    data = with_header(header, b"\x00" * 8)
    assert data[:2] == b"\x80\x02"
    assert parse_header(data)["a"].shape == (2,)


def test_limits_hold() -> None:
    data = safetensors({"a": tensor([2]), "b": tensor([2])})
    with pytest.raises(AdapterTooLargeError):
        parse_header(data, limits=AdapterLimits(max_weights_bytes=len(data) - 1))
    with pytest.raises(BadWeightsError, match="header"):
        parse_header(data, limits=AdapterLimits(max_header_bytes=10))
    with pytest.raises(BadWeightsError, match="2 tensors"):
        parse_header(data, limits=AdapterLimits(max_tensors=1))


BAD_BITS = {
    "F32": [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001],
    "F16": [0x7C00, 0xFC00, 0x7E00, 0x7C01],
    "BF16": [0x7F80, 0xFF80, 0x7FC0, 0x7F81],
}
LARGEST_BITS = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}


@pytest.mark.parametrize(("dtype", "bits"), [(d, b) for d, bad in BAD_BITS.items() for b in bad])
@pytest.mark.parametrize("position", [0, 7, 99])
def test_nan_and_infinity_are_found(dtype: str, bits: int, position: int) -> None:
    kind, shape, raw = tensor([100], dtype)
    size = len(raw) // 100
    damaged = bytearray(raw)
    damaged[position * size : (position + 1) * size] = bits.to_bytes(size, "little")
    data = safetensors({"pad": tensor([1], "F16"), "t": (kind, shape, bytes(damaged))})
    ref = parse_header(data)["t"]
    with pytest.raises(NonFiniteError) as caught:
        check_finite(memoryview(data)[ref.start : ref.end], ref)
    assert caught.value.metadata == {"tensor": "t", "element": str(position)}


@pytest.mark.parametrize("dtype", list(LARGEST_BITS))
def test_finite_values_pass(dtype: str) -> None:
    bits = LARGEST_BITS[dtype]
    size = 4 if dtype == "F32" else 2
    raw = bits.to_bytes(size, "little") + (1).to_bytes(size, "little") + b"\x00" * size
    data = safetensors({"t": (dtype, [3], raw)})
    ref = parse_header(data)["t"]
    check_finite(memoryview(data)[ref.start : ref.end], ref)


def test_nan_beyond_the_first_chunk_is_found() -> None:
    count = (8 << 20) // 4 + 5
    values = np.zeros(count, dtype="<f4")
    values[-1] = np.nan
    data = safetensors({"t": ("F32", [count], values.tobytes())})
    ref = parse_header(data)["t"]
    with pytest.raises(NonFiniteError) as caught:
        check_finite(memoryview(data)[ref.start : ref.end], ref)
    assert caught.value.metadata["element"] == str(count - 1)
