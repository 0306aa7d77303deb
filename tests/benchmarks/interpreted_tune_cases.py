"""Cases of the tuner with interpreted kernels: see tests/kernels/interpreter.py."""

from __future__ import annotations

import pytest
import torch

from benchmarks.errors import BenchError
from benchmarks.tune_cases import GroupShape, Measured

PARTS = [(1, 8), (3, 16), (1, 4)]


@pytest.mark.parametrize("kernel", ["expand", "affine"])
def test_a_wrong_result_is_an_error(kernel: str) -> None:
    case = Measured(GroupShape(64, (32, 32)), PARTS, torch.device("cpu"), page_elems=512)
    case.check(kernel)
    case.pages[case.segments[0].pages.ids] += 0.5
    case.check(kernel)
    case.group.metadata.tiles[1, 0] = case.affine_group.metadata.tiles[1, 0] = 2
    with pytest.raises(BenchError, match=f"{kernel} with .* is wrong"):
        case.check(kernel)
