"""The search for tiles, with the device's answers made up."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.errors import BenchError
from benchmarks.tune_kernels import main, table_entry, tuned
from kernels.lora.tuning import Regime, parse_tiles, tiles_of

START = tiles_of("default").decode
BEST = START._replace(
    shrink=START.shrink._replace(block_k=64, k_per_split=2048, num_stages=3),
    expand=START.expand._replace(block_rank=32, block_out=128, num_warps=8),
    affine=START.affine._replace(num_warps=2),
)


def distance(kernel: str, regime: Regime) -> float:
    mine, best = getattr(regime, kernel), getattr(BEST, kernel)
    return 1.0 + sum(abs(math.log2(a / b)) for a, b in zip(mine, best, strict=True))


def test_the_fastest_tile_is_found() -> None:
    assert tuned(START, distance) == BEST


def test_tiles_that_do_not_fit_are_passed_over() -> None:
    def measure(kernel: str, regime: Regime) -> float:
        if kernel == "expand" and regime.expand.block_out < 256:
            return math.inf
        return distance(kernel, regime)

    assert tuned(START, measure) == BEST._replace(expand=BEST.expand._replace(block_out=256))
    with pytest.raises(BenchError, match="no tile of shrink fits"):
        tuned(START, lambda kernel, regime: math.inf)


def test_noise_changes_nothing() -> None:
    times = iter(1.0 - 1e-6 * count for count in range(1000))
    assert tuned(START, lambda kernel, regime: next(times)) == START


def test_what_is_written_is_what_is_read() -> None:
    tiles = tiles_of("sm_90")
    entry = table_entry(tiles, "measured")
    assert entry["from"] == "measured" and parse_tiles(entry["tiles"]) == tiles


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["tune_kernels", "--table", str(table)])
    with pytest.raises(SystemExit, match="NO_GPU"):
        main()
    assert not table.exists()
