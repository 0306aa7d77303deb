"""Routing and tiles of mixtures of experts under Triton's interpreter: see
tests/kernels/interpreter.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from kernels.experts import naive, triton_experts, triton_products, triton_route, triton_slots
from kernels.experts.op import mix_experts
from kernels.experts.triton_products import case_of, most_tiles
from kernels.experts.triton_route import choose, route
from kernels.experts.triton_slots import slot_metadata
from kernels.experts.triton_warm_up import warm_up
from kernels.gpu.tuning import tuned
from kernels.lora import triton_expand, triton_shrink
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import PLAN_FIELDS, LoraSpans, PageRun
from tests.kernels.expert_cases import random_experts, random_rows
from tests.kernels.expert_lora_cases import ExpertLoraCase, Part

# NumPy's word for rows that are no numbers.
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN|invalid value|overflow:RuntimeWarning")


@pytest.mark.parametrize(("num_experts", "top_k"), [(6, 2), (33, 5), (4, 4)])
@pytest.mark.parametrize("normalizes", [False, True])
def test_routing_equals_its_twin(num_experts: int, top_k: int, normalizes: bool) -> None:
    x = random_rows(23, 16, torch.float32)
    router = random_rows(num_experts, 16, torch.float32, seed=5)
    router[1] = router[0]  # equal shares
    expected, shares = naive.route(x, router, top_k, normalizes=normalizes)
    chosen, found = choose(x @ router.T, top_k, normalizes=normalizes)
    assert torch.equal(chosen.long(), expected)
    torch.testing.assert_close(found, shares)
    routed = route(x, router, top_k, normalizes=normalizes)
    by_expert = [torch.where(expected.flatten() == each)[0] for each in range(num_experts)]
    assert torch.equal(routed.order.flatten().long(), torch.cat(by_expert))
    counts = [0, *(len(each) for each in by_expert)]
    assert routed.starts.tolist() == torch.tensor(counts).cumsum(0).tolist()


def test_a_choice_is_whole_whatever_the_logits_are() -> None:
    logits = torch.full((3, 5), float("nan"))
    logits[1] = float("-inf")
    logits[2, 3] = float("inf")
    chosen, _ = choose(logits, 2, normalizes=True)
    assert all(len(set(row)) == 2 and max(row) < 5 for row in chosen.tolist())


def test_there_is_a_tile_for_each_slot() -> None:
    for num_experts in (1, 3, 60):
        for num_slots in (1, 2, 17, 300):
            for block_m in (16, 64):
                most = most_tiles(num_slots, num_experts, block_m)
                uneven = [1] * (min(num_experts, num_slots) - 1)
                uneven.append(num_slots - len(uneven))
                even = [len(range(at, num_slots, num_experts)) for at in range(num_experts)]
                for counts in (uneven, even, [num_slots]):
                    assert sum(-(-count // block_m) for count in counts) <= most


class Launches:
    def __init__(self, kernel: Any, counted: Counter[Any], name: str) -> None:
        self._kernel, self._counted, self._name = kernel, counted, name

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            told = ("BLOCK_K", "HAS_DELTA", "BLOCK_TOKENS", "ALIGN", "EXPERT_FIELD")
            key = self._name, *map(options.get, told)
            self._counted[key] += 1
            return self._kernel[grid](*arguments, **options)

        return launch


def test_warming_up_launches_whatever_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[Any] = Counter()
    for module, name in (
        (triton_route, "choose_kernel"),
        (triton_route, "group_kernel"),
        (triton_products, "gate_up_kernel"),
        (triton_products, "down_kernel"),
        (triton_experts, "combine_kernel"),
        (triton_slots, "slot_keys_kernel"),
        (triton_slots, "slot_tiles_kernel"),
        (triton_shrink, "shrink_kernel"),
        (triton_expand, "expand_kernel"),
    ):
        monkeypatch.setattr(module, name, Launches(getattr(module, name), counted, name))
    weights = random_experts(3, 16, 16, 2, dtype=torch.bfloat16, has_shared=True)
    case = ExpertLoraCase(weights, [Part(1, (2, (3, 8), 8))])
    warm_up([weights, weights], "silu", case.layer_pages)
    known = set(counted)
    blocks = {tuned("experts", "interpreter", "gate_up", case)["block_k"] for case in CASES}
    assert blocks == {key[1] for key in known if key[0] == "gate_up_kernel"} and len(blocks) == 2
    assert {case_of(2 * tokens, 3) for tokens in (1, 24, 25)} == set(CASES)
    for num_tokens in (1, 24, 25):
        x = random_rows(num_tokens, 16, torch.bfloat16)
        for delta in (None, x):
            mix_experts(x, weights, "silu", x, delta)
        adapters = ExpertLoraCase(weights, [Part(num_tokens, (2, (3, 8), 8))]).lora
        mix_experts(x, weights, "silu", x, lora=adapters)
    assert set(counted) == known


CASES = ("few", "many")


@pytest.mark.parametrize("num_tokens", [1, 9, 60])
def test_tiles_cover_each_slot_of_an_adapter_once(num_tokens: int) -> None:
    """And no tile is of two experts or two adapters; those that are left over are empty."""
    num_experts, top_k = 5, 3
    x, router = (random_rows(n, 16, torch.float32, seed=n) for n in (num_tokens, num_experts))
    routed = route(x, router, top_k, normalizes=True)
    spans = [(0, 1), (3, 3 + num_tokens // 2)] if num_tokens > 3 else [(0, 1)]
    common = LoraSpans.of(spans, [PageRun.of([0])] * len(spans))
    rows = np.zeros((1, 1, len(spans), PLAN_FIELDS), dtype=np.int64)
    rows[..., 0] = 4
    metadata = LoraBatchMetadata.of(common, rows, torch.device("cpu"))
    made = slot_metadata(metadata, routed)
    segment_of = {t: at for at, span in enumerate(spans) for t in range(*span)}
    order, chosen = routed.order.flatten().tolist(), routed.chosen.flatten().tolist()
    covered: list[int] = []
    tiles = made.tiles.tolist()
    used = [tile for tile in tiles if tile[0] >= 0]
    assert tiles[: len(used)] == used and made.num_tiles == len(tiles)
    for segment, first, count, expert in used:
        assert 1 <= count <= made.regime.block_tokens
        for slot in order[first : first + count]:
            assert segment_of[slot // top_k] == segment and chosen[slot] == expert
            covered.append(slot)
    assert sorted(covered) == [at for at in range(len(order)) if at // top_k in segment_of]


def test_experts_apart_are_refused() -> None:
    weights = random_experts(3, 16, 16, 2, dtype=torch.float32)
    weights.down = list(weights.down)
    with pytest.raises(ValueError, match="down"):
        mix_experts(random_rows(2, 16, torch.float32), weights, "silu")
