"""What codes stand for, element by element; what has no meaning is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.quantized.matrix import KINDS, TABLES, Kind, QuantizedMatrix, stack
from tests.kernels.quantized_cases import random_matrix


def float8(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def element(matrix: QuantizedMatrix, row: int, column: int) -> np.float32:
    """As the docstring of `dequantize` says, before it is rounded."""
    inputs = matrix.shape[1]
    if matrix.group_index is not None:
        group = int(matrix.group_index[column])
    else:
        group = column // (inputs // len(matrix.scales))
    scale = np.float32(matrix.scales[group, row].item())
    if matrix.kind in ("uint8", "float8_e4m3"):
        code = int(matrix.codes[row, column])
    else:
        code = int(matrix.codes[row, column // 2]) >> (4 * (column % 2)) & 15
    if matrix.kind == "float8_e4m3":
        return np.float32(float8(code)) * scale
    if matrix.kind in TABLES:
        return np.float32(TABLES[matrix.kind][code]) * scale
    zero = {"uint4": 8, "uint8": 128}[matrix.kind]
    if matrix.zeros is not None:
        zero = int(matrix.zeros[group, row])
    return np.float32(code - zero) * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_every_element(
    kind: Kind, dtype: torch.dtype, scales: torch.dtype, is_ordered: bool, has_zeros: bool
) -> None:
    matrix = random_matrix(
        kind,
        *(7, 24, 3),
        dtype=dtype,
        scales=scales,
        has_zeros=has_zeros and kind in ("uint4", "uint8"),
        is_ordered=is_ordered,
    )
    assert matrix.shape == (7, 24)
    expected = torch.from_numpy(
        np.array([[element(matrix, row, column) for column in range(24)] for row in range(7)])
    ).to(dtype)
    assert torch.equal(matrix.dequantize(), expected)
    assert torch.equal(matrix.dequantize(slice(2, 5)), expected[2:5])
    out = torch.full((3, 24), float("nan"), dtype=dtype)
    assert matrix.dequantize(slice(4, 99), out=out) is out
    assert torch.equal(out, expected[4:])


def test_every_code_of_float8() -> None:
    codes = torch.arange(256).to(torch.uint8)[None]
    scales = torch.ones(1, 1)
    matrix = QuantizedMatrix(codes, scales, None, None, "float8_e4m3", torch.float32)
    expected = torch.tensor([[float8(code) for code in range(256)]])
    assert torch.equal(matrix.dequantize().nan_to_num(1e9), expected.nan_to_num(1e9))
    assert matrix.dequantize().isnan().sum() == 2


def test_many_rows_are_dequantised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix("uint4", 50, 32, 4)
    whole = matrix.dequantize()
    monkeypatch.setattr("kernels.quantized.matrix._ELEMENTS_AT_ONCE", 32 * 7)
    assert torch.equal(matrix.dequantize(), whole)
    assert torch.equal(matrix.dequantize(slice(5, 30)), whole[5:30])


def test_bytes_are_those_of_all_tensors() -> None:
    matrix = random_matrix("uint4", 8, 64, 2, scales=torch.float16, has_zeros=True)
    assert matrix.num_bytes == 8 * 32 + 2 * 8 * 2 + 2 * 8
    assert random_matrix("uint8", 8, 64, is_ordered=False).num_bytes == 8 * 64 + 8 * 4 + 64 * 4


GOOD = random_matrix("uint4", 6, 16, 2, has_zeros=True)
BAD = {
    "kind 'int3'": {"kind": "int3"},
    "dtype torch.int8": {"dtype": torch.int8},
    r"codes torch.int8 \(6, 8\)": {"codes": GOOD.codes.to(torch.int8)},
    r"codes torch.uint8 \(48,\)": {"codes": GOOD.codes.flatten()},
    r"codes torch.uint8 \(6, 0\)": {"codes": GOOD.codes[:, :0]},
    "codes of strides": {"codes": GOOD.codes.T.contiguous().T},
    r"scales \(2, 5\)": {"scales": GOOD.scales[:, :5]},
    r"scales \(0, 6\)": {"scales": GOOD.scales[:0]},
    "scales torch.float64": {"scales": GOOD.scales.double()},
    "scales of strides": {"scales": GOOD.scales.T.contiguous().T},
    "zeros torch.int32": {"zeros": GOOD.codes[:2, :6].int()},
    r"zeros torch.uint8 \(1, 6\)": {"zeros": GOOD.codes[:1, :6].contiguous()},
    "nf4 has no zero points": {"kind": "nf4"},
    "16 inputs are not 3 equal groups": {"scales": torch.ones(3, 6), "zeros": None},
    r"group_index torch.int64 \(16,\)": {"group_index": torch.zeros(16, dtype=torch.int64)},
    r"group_index torch.int32 \(15,\)": {"group_index": torch.zeros(15, dtype=torch.int32)},
    "scales is on meta": {"scales": GOOD.scales.to("meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **BAD[message])


def test_out_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="out torch"):
        GOOD.dequantize(out=torch.empty(6, 16))
    with pytest.raises(ValueError, match=r"\(5, 16\)"):
        GOOD.dequantize(out=torch.empty(5, 16, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="steps of 1"):
        GOOD.dequantize(slice(0, 6, 2))


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("zeros", [(False, False), (True, False), (True, True)])
def test_a_stack_is_its_parts(zeros: tuple[bool, bool], is_ordered: bool) -> None:
    first, second = (
        random_matrix("uint4", rows, 32, 4, has_zeros=each, is_ordered=is_ordered, seed=rows)
        for rows, each in zip((6, 9), zeros, strict=True)
    )
    second = replace(second, group_index=first.group_index)
    stacked = stack([first, second])
    assert stacked is not None and stacked.shape == (15, 32)
    expected = torch.cat([first.dequantize(), second.dequantize()])
    assert torch.equal(stacked.dequantize(), expected)
    assert stack([first]) is first


def test_parts_without_a_common_form_have_no_stack() -> None:
    matrix = random_matrix("uint4", 6, 32, 4)
    others = [
        random_matrix("nf4", 6, 32, 4),
        random_matrix("uint4", 6, 32, 2),
        random_matrix("uint4", 6, 32, 4, dtype=torch.float16),
        random_matrix("uint4", 6, 32, 4, scales=torch.float16),
        random_matrix("uint4", 6, 32, 4, is_ordered=False),
    ]
    assert [stack([matrix, other]) for other in others] == [None] * len(others)
    unordered = others[-1]
    assert unordered.group_index is not None
    moved = replace(unordered, group_index=unordered.group_index.roll(1))
    assert stack([unordered, moved]) is None
    with pytest.raises(ValueError, match=r"\[32, 16\]"):
        stack([matrix, random_matrix("uint4", 6, 16, 4)])
    with pytest.raises(ValueError, match="no part"):
        stack([])


def test_a_matrix_on_its_device_is_not_copied() -> None:
    assert GOOD.to(torch.device("cpu")) is GOOD
    moved = GOOD.to(torch.device("meta"))
    assert moved.device.type == "meta" and moved.zeros is not None and moved.shape == GOOD.shape
