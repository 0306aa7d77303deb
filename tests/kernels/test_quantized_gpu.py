"""Products with quantised matrices on a real device, at Llama 3 8B's shapes: run by make
gpu-check."""

from __future__ import annotations

import pytest
import torch

from kernels.linear.op import linear
from kernels.quantized import naive
from kernels.quantized.matrix import Kind
from tests.kernels.quantized_cases import random_matrix

pytestmark = pytest.mark.gpu

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
KINDS: dict[str, tuple[Kind, int, bool, bool]] = {
    # kind, inputs of a group, whether there are zero points, whether groups are in order
    "uint4": ("uint4", 128, True, True),
    "uint4 of 32": ("uint4", 32, False, True),
    "uint4 in any order": ("uint4", 128, True, False),
    "uint8 of a row": ("uint8", 0, True, True),
    "float8 of a block": ("float8_e4m3", 128, False, True),
    "float8 of a row": ("float8_e4m3", 0, False, True),
    "nf4": ("nf4", 64, False, True),
    "fp4": ("fp4", 64, False, True),
}
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_the_twins(shape: str, name: str, dtype: torch.dtype) -> None:
    kind, size, has_zeros, is_ordered = KINDS[name]
    outputs, inputs = SHAPES[shape]
    matrix = random_matrix(
        kind,
        *(outputs, inputs, inputs // size if size else 1),
        dtype=dtype,
        has_zeros=has_zeros,
        is_ordered=is_ordered,
        device="cuda",
    )
    weights = matrix.dequantize().float()
    tolerance = TOLERANCES[dtype]
    for num_tokens in (1, 16, 33, 100, 400):
        x = (torch.randn(num_tokens, inputs, device="cuda") / inputs**0.5).to(dtype)
        bias = torch.randn(outputs, device="cuda").to(dtype)
        y = linear(x, matrix, bias)
        assert torch.equal(y, linear(x, matrix, bias))  # no order of additions is left to chance
        expected = x.float() @ weights.T + bias.float()
        torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)


def test_a_matrix_of_more_than_2_to_the_31_weights() -> None:
    matrix = random_matrix("uint4", 300_000, 8192, dtype=torch.float16, device="cuda")
    x = torch.randn(2, 8192, device="cuda").half() / 90
    rows = slice(299_000, None)
    expected = x.float() @ matrix.dequantize(rows).float().T
    torch.testing.assert_close(linear(x, matrix)[:, rows].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("num_tokens", [1, 64, 256])
def test_a_captured_graph_reads_what_is_there_when_it_runs(num_tokens: int) -> None:
    matrix = random_matrix("nf4", 6144, 4096, 64, device="cuda")
    x = torch.zeros(num_tokens, 4096, dtype=torch.bfloat16, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        linear(x, matrix)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x, matrix)
    for _ in range(3):
        x.normal_(std=4096**-0.5)
        graph.replay()
        expected = naive.linear(x, matrix, None).float()
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
