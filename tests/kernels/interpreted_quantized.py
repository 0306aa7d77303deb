"""What launches of quantised matrices are, under Triton's interpreter: see
tests/kernels/interpreter.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from kernels.gpu.tuning import tuned
from kernels.linear.op import linear
from kernels.quantized import triton_linear, triton_warm_up, triton_weights
from kernels.quantized.matrix import QuantizedMatrix
from kernels.quantized.triton_linear import TILES, split_inputs, tile_tokens
from kernels.quantized.triton_warm_up import warm_up
from tests.kernels.quantized_cases import random_matrix

KERNELS = {
    "linear_kernel": triton_linear,
    "add_splits_kernel": triton_linear,
    "dequantize_kernel": triton_weights,
}


class Launches:
    """Counts launches of a kernel by its grid and constexprs."""

    def __init__(self, kernel: Any, counted: Counter[Any], name: str) -> None:
        self._kernel, self._counted, self._name = kernel, counted, name

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            self._counted[self._name, grid, options.get("BLOCK_M"), options.get("HAS_BIAS")] += 1
            return self._kernel[grid](*arguments, **options)

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    counted: Counter[Any] = Counter()
    for name, module in KERNELS.items():
        monkeypatch.setattr(module, name, Launches(getattr(module, name), counted, name))
    return counted


def names(launches: Counter[Any]) -> set[str]:
    return {name for name, *_ in launches}


def test_few_tokens_never_meet_a_dequantised_matrix(launches: Counter[Any]) -> None:
    few = tuned("quantized", "interpreter", "regime", "any")["fused_tokens"]
    matrix = random_matrix("uint4", 40, 64, 2)
    for num_tokens in (1, few):
        linear(torch.zeros(num_tokens, 64, dtype=torch.bfloat16), matrix)
    assert "linear_kernel" in names(launches) and "dequantize_kernel" not in names(launches)
    launches.clear()
    linear(torch.zeros(few + 1, 64, dtype=torch.bfloat16), matrix)
    scratch = tuned("quantized", "interpreter", "regime", "any")["scratch_elems"]
    assert names(launches) == {"dequantize_kernel"}
    assert sum(launches.values()) == -(-40 // (scratch // 64))  # by parts


def test_few_outputs_are_split_by_inputs(launches: Counter[Any]) -> None:
    """So that there are programs enough; a launch depends on shapes alone."""
    settings = tuned("quantized", "interpreter", "linear", "16x4")
    assert split_inputs(1, 16, 320, settings) == (5, 2)
    assert split_inputs(1, 64, 320, settings) == (2, 5)
    assert split_inputs(1, 16 * settings["programs"], 320, settings) == (1, 10)
    assert split_inputs(1, 16, 32, settings) == (1, 1)
    matrix = random_matrix("uint4", 16, 320, 10)
    bias = torch.zeros(16, dtype=torch.bfloat16)
    linear(torch.zeros(3, 320, dtype=torch.bfloat16), matrix, bias)
    assert launches == {
        ("linear_kernel", (1, 1, 5), 16, False): 1,
        ("add_splits_kernel", (3, 1), None, True): 1,
    }


def test_splits_cover_all_inputs_once() -> None:
    for case in ("default", "sm_80", "sm_90", "gfx942"):
        for num_tokens in (1, 16, 17, 64, 192):
            for outputs, inputs in ((6144, 4096), (4096, 14336), (50, 96), (28672, 4096)):
                tile = tile_tokens(num_tokens)
                settings = tuned("quantized", case, "linear", f"{tile}x4")
                splits, each = split_inputs(num_tokens, outputs, inputs, settings)
                blocks = -(-inputs // settings["block_k"])
                assert (splits - 1) * each < blocks <= splits * each


def test_tiles_hold_all_tokens_or_are_the_largest() -> None:
    assert [tile_tokens(n) for n in (1, 16, 17, 32, 33, 64, 65, 500)] == [
        *(16, 16, 32, 32, 64, 64, 64, 64)
    ]


def test_warming_up_launches_whatever_steps_do(launches: Counter[Any]) -> None:
    matrix = random_matrix("uint4", 40, 64, 2)
    bias = torch.zeros(40, dtype=torch.bfloat16)
    plain = torch.zeros(40, 64, dtype=torch.bfloat16)
    warm_up([(matrix, bias), (plain, None), (random_matrix("uint4", 40, 64, 2, seed=1), bias)])
    tiles = {block for name, _, block, _ in launches if name == "linear_kernel"}
    assert tiles == set(TILES) and "dequantize_kernel" in names(launches)
    once = launches.copy()
    warm_up([(matrix, bias)])
    assert launches == once + once  # the two that are alike took the time of one


@pytest.mark.parametrize("device", ["default", "sm_80", "sm_90", "gfx942"])
def test_no_number_of_tokens_compiles_anything_in_a_step(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tiles of tokens make for fewer splits, which are constexprs."""
    monkeypatch.setattr(triton_warm_up, "device_name", lambda _: device)
    warmed: list[int] = []
    monkeypatch.setattr(triton_warm_up, "linear", lambda x, *_: warmed.append(len(x)))
    few = tuned("quantized", device, "regime", "any")["fused_tokens"]
    for outputs, inputs in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (640, 2048)):
        matrix = QuantizedMatrix(
            torch.empty(outputs, inputs // 2, dtype=torch.uint8),
            torch.empty(1, outputs),
            *(None, None, "nf4", torch.bfloat16),
        )

        def way(num_tokens: int, outputs: int = outputs, inputs: int = inputs) -> object:
            tile = tile_tokens(num_tokens)
            settings = tuned("quantized", device, "linear", f"{tile}x4")
            return tile, split_inputs(num_tokens, outputs, inputs, settings)[0]

        warmed.clear()
        warm_up([(matrix, None)])
        assert {way(n) for n in warmed if n <= few} == {way(n) for n in range(1, few + 1)}
        assert max(warmed) > few and len(warmed) < 12
