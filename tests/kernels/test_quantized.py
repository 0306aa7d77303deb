"""Products with quantised matrices: plain torch here; Triton's interpreted
(tests/kernels/test_interpreted.py) and on a GPU. Outputs start as NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.gpu.dispatch import interpreting, uses_triton
from kernels.linear.op import linear, pack, unpack
from kernels.quantized.matrix import Kind, QuantizedMatrix
from tests.kernels.quantized_cases import random_matrix

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy amid NaN, or the codes of float8's."""
    size = tensor.numel()
    wide = tensor.new_full((size + 4096,), 0x7F if tensor.dtype is torch.uint8 else float("nan"))
    wide[2048 : 2048 + size] = tensor.flatten()
    return wide[2048 : 2048 + size].view(tensor.shape)


def check(
    matrix: QuantizedMatrix, num_tokens: int, has_bias: bool = False, seed: int = 0
) -> torch.Tensor:
    """The product of random inputs, in a wider matrix of NaN, with what the matrix stands for. What
    lies around the matrix in memory is no number either."""
    matrix = replace(matrix, codes=guarded(matrix.codes), scales=guarded(matrix.scales))
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = matrix.shape
    values = torch.randn(num_tokens, inputs, generator=generator) / inputs**0.5
    wide = torch.full((num_tokens, inputs + 8), float("nan"), dtype=matrix.dtype)
    wide[:, :inputs] = values
    x = wide.to(matrix.device)[:, :inputs]
    bias = None
    if has_bias:
        bias = torch.randn(outputs, generator=generator).to(matrix.device, matrix.dtype)
    y = linear(x, matrix, bias)
    assert y.dtype is matrix.dtype and y.shape == (num_tokens, outputs)
    expected = x.double() @ matrix.dequantize().double().T
    if bias is not None:
        expected += bias.double()
    tolerance = TOLERANCES[matrix.dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    return y


GROUPS: dict[str, tuple[Kind, int, bool, bool]] = {
    "one for a row": ("uint4", 1, False, True),
    "of many blocks": ("uint4", 2, False, True),
    "of a block": ("uint8", 10, True, True),
    "several in a block": ("uint4", 20, True, True),
    "of odd size": ("uint8", 16, False, True),
    "of one input": ("uint4", 320, True, True),
    "in any order": ("uint4", 5, True, False),
    "nf4": ("nf4", 20, False, True),
    "fp4": ("fp4", 5, False, True),
    "float8": ("float8_e4m3", 5, False, True),
    "float8 in any order": ("float8_e4m3", 3, False, False),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_and_kinds(groups: str, device: str) -> None:
    """Tails of tokens, outputs and inputs: tiles have 16 or 32 of each, or more."""
    kind, num_groups, has_zeros, is_ordered = GROUPS[groups]
    scales = torch.float32 if kind in ("nf4", "fp4") else torch.float16
    matrix = random_matrix(
        kind,
        *(50, 320, num_groups),
        scales=scales,
        has_zeros=has_zeros,
        is_ordered=is_ordered,
        device=device,
    )
    check(matrix, 5, has_bias=True)


@pytest.mark.parametrize("num_tokens", [0, 1, 17, 70, 150])
def test_any_number_of_tokens(num_tokens: int, device: str) -> None:
    matrix = random_matrix("uint4", 50, 160, 5, dtype=torch.float16, has_zeros=True, device=device)
    check(matrix, num_tokens)
    check(matrix, num_tokens, has_bias=True)


@pytest.mark.parametrize("kind", ["uint4", "float8_e4m3"])
def test_inputs_that_fill_no_block(kind: Kind, device: str) -> None:
    for num_tokens in (3, 150):
        check(random_matrix(kind, 40, 90, device=device), num_tokens)
        check(random_matrix(kind, 40, 90, 3, device=device), num_tokens)


def test_float32(device: str) -> None:
    matrix = random_matrix("uint4", 40, 96, 3, dtype=torch.float32, device=device)
    check(matrix, 5, has_bias=True)


@pytest.mark.parametrize("kind", ["uint8", "float8_e4m3", "uint4", "nf4", "fp4"])
def test_weights_are_the_twins_to_the_bit(kind: Kind, device: str) -> None:
    """Each code, in both halves of a byte: products with rows of an identity are the weights."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).repeat(2, 1)
    if kind == "float8_e4m3":
        codes[codes & 127 == 127] = 0  # NaN would be in every output
    inputs = 256 if kind in ("uint8", "float8_e4m3") else 512
    scales = torch.tensor([[0.3, 7.0]], device=device)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        matrix = QuantizedMatrix(codes, scales, None, None, kind, dtype)
        assert matrix.shape == (2, inputs)
        identity = torch.eye(inputs, dtype=dtype, device=device)
        for rows in (identity[:16], identity[-16:]):  # by the other way than all of them
            assert torch.equal(linear(rows, matrix).T, matrix.dequantize()[:, rows.any(0)])
        assert torch.equal(linear(identity, matrix).T, matrix.dequantize())


def test_a_code_that_is_no_number_gives_none(device: str) -> None:
    matrix = random_matrix("float8_e4m3", 40, 64, device=device)
    for code in (0x7F, 0xFF):
        matrix.codes[7, 9] = code
        for num_tokens in (1, 150):
            x = torch.ones(num_tokens, 64, dtype=matrix.dtype, device=device)
            is_nan = linear(x, matrix).isnan()
            assert is_nan[:, 7].all() and is_nan.sum() == num_tokens


def test_the_same_bits_again(device: str) -> None:
    matrix = random_matrix("uint4", 50, 320, 10, device=device)
    assert torch.equal(check(matrix, 3), check(matrix, 3))


def test_columns_that_are_not_contiguous(device: str) -> None:
    matrix = random_matrix("uint4", 40, 64, 2, device=device)
    x = torch.randn(64, 5, device=device).to(matrix.dtype)
    assert torch.equal(linear(x.T, matrix), linear(x.T.contiguous(), matrix))


def test_what_does_not_fit_is_refused() -> None:
    matrix = random_matrix("uint4", 40, 64, 2)
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    for bad in (x.float(), x[:, :32], x[0]):
        with pytest.raises(ValueError, match=r"a matrix of 64 .* inputs"):
            linear(bad, matrix)
    for bias in (torch.zeros(40), torch.zeros(39, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"a matrix of 40 .* outputs"):
            linear(x, matrix, bias)
    with pytest.raises(ValueError, match="x is on meta, the matrix on cpu"):
        linear(x.to("meta"), matrix)


def test_packing_dequantises_on_cpu_and_nowhere_else() -> None:
    matrix = random_matrix("nf4", 64, 64, 2)
    assert torch.equal(unpack(matrix), matrix.dequantize())
    moved = matrix.to(torch.device("meta"))
    assert pack(moved) is moved
    packed = pack(matrix)
    assert isinstance(packed, torch.Tensor)
    if not interpreting():
        x = torch.randn(3, 64).to(matrix.dtype)
        torch.testing.assert_close(linear(x, packed), linear(x, matrix), rtol=2e-2, atol=0.1)
    wide = replace(matrix, dtype=torch.float32)
    assert torch.equal(unpack(pack(wide)), wide.dequantize())


def test_this_runs_triton_where_it_should() -> None:
    """Or all of the above compares torch with itself."""
    assert uses_triton(torch.empty(0)) == interpreting()
