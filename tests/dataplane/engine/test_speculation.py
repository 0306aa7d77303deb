"""Drafts change how many steps an answer takes, and nothing else of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dataplane.engine.prefix_cache import CachedBlock
from dataplane.errors import DataPlaneError, NonFiniteOutputError
from kernels.linear.cpu import is_best
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig
from tests.helpers.forwards import count_forwards, guard_pages, wrap_forward
from tests.helpers.models import ATTENTION, add_adapter, make_model, save_model
from tests.helpers.traffic import check_traffic, meet_traffic, random_requests

PROMPT = [3 + (7 * at) % 120 for at in range(21)]
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    changes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = make_model("llama", **changes)
    paths = {"model": save_model(model, root / "model")}
    for index, (name, rank) in enumerate([("a", 8), ("b", 3)]):
        paths[name] = root / name
        model = add_adapter(
            model, name, paths[name], rank=rank, target_modules=ATTENTION, seed=index
        )
    return paths


def cached(rig: Rig) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    """Adapter and tokens up to a cached block's end -> its keys and values, in all layers."""

    def path(block: CachedBlock) -> tuple[int, ...]:
        return (*(path(block.parent) if block.parent else ()), *block.key.tokens)

    data = rig.pool.data
    return {
        (b.key.digest, path(b)): data[:, b.page].clone() for b in rig.engine._prefixes._blocks()
    }


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6), late=st.booleans(), has_cache=st.booleans())
def test_tokens_are_those_without_drafts_whatever_happens(
    assets: dict[str, Path], seed: int, late: bool, has_cache: bool
) -> None:
    """Requests that come, stop, are aborted and preempted, in a pool for two or three of them."""
    dice = random.Random(seed)
    num_pages = dice.randrange(19, 27)
    rig = Rig(
        assets["model"],
        num_pages=num_pages,
        max_running=5,
        max_batch_tokens=24,
        speculative_tokens=dice.choice([1, 4, 8]),
        prefix_cache=has_cache,
    )
    calm = Rig(assets["model"], pipeline_depth=1)
    guard_pages(rig, late=late)
    requests = list(random_requests(dice, assets, 12))
    for handle, request in enumerate(requests):
        request.sampling["logit_bias"] = dice.choice([(), ((9, 3.0), (40, -2.0))])
        request.submit(calm, handle)
    calm.run()
    force_drafts(rig, calm.tokens, seed=seed)
    _, aborted = meet_traffic(rig, requests, dice)
    check_traffic(rig, calm, aborted, num_pages)


@pytest.mark.skipif(not is_best(), reason="the base GEMM is a library's here")
@pytest.mark.parametrize("seed", range(3))
def test_in_bfloat16_logits_and_what_is_cached_have_the_same_bits(
    assets: dict[str, Path], seed: int
) -> None:
    rigs = [
        Rig(assets["model"], dtype=torch.bfloat16, num_pages=200, speculative_tokens=number)
        for number in (0, 4)
    ]
    for rig in rigs:
        if rig is rigs[1]:
            force_drafts(rig, rigs[0].tokens, seed=seed)
        for handle, name in enumerate(("a", "b", None, "a", "b", None)):
            adapter = assets[name] if name else None
            asked = {"temperature": float(handle > 2), "seed": handle + seed, "logprobs": 1}
            length = len(PROMPT) - 4 * handle
            rig.submit(
                handle, PROMPT[:length], adapter, max_tokens=NUM_TOKENS, ignore_eos=True, **asked
            )
        rig.run()
    plain, drafted = rigs
    assert drafted.tokens == plain.tokens and drafted.logprobs == plain.logprobs
    for handle, rows in plain.logits.items():
        assert torch.equal(torch.stack(rows), torch.stack(drafted.logits[handle]))
    stats = drafted.engine.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    expected, got = cached(plain), cached(drafted)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_the_own_text_is_drafted_from_and_saves_steps(assets: dict[str, Path]) -> None:
    """What repeats itself here is what the bias allows: two tokens, by turns."""
    only = tuple((token, 100.0) for token in (5, 6))

    def run(number: int) -> tuple[Rig, list[int]]:
        rig = Rig(assets["model"], speculative_tokens=number)
        drafting = rig.engine._scheduler._drafting
        if drafting is not None:  # tokens are dear in a model of this size
            drafting._counts = lambda chances, _: [  # pyright: ignore[reportAttributeAccessIssue]
                sum(each > 0.5 for each in of) for of in chances
            ]
        counts = count_forwards(rig)
        for handle in range(2):
            rig.submit(
                handle, [5, 5 + handle] * 8, None, max_tokens=60, ignore_eos=True, logit_bias=only
            )
        rig.run()
        return rig, counts

    (plain, all_steps), (drafted, fewer) = run(0), run(4)
    assert drafted.tokens == plain.tokens
    stats = drafted.engine.stats()
    assert stats.num_accepted_tokens > 0.5 * stats.num_drafted_tokens > 20
    assert len(fewer) < 0.7 * len(all_steps)
    assert plain.engine.stats().num_drafted_tokens == 0
    assert not any(each.drafts for each in plain.engine._outcomes.sequences.values())


@pytest.fixture(scope="module")
def answer(assets: dict[str, Path]) -> list[int]:
    """To `PROMPT`, longer than any test asks for."""
    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, max_tokens=NUM_TOKENS + 20, ignore_eos=True)
    rig.run()
    return rig.tokens[0]


def check_ends(
    assets: dict[str, Path], answer: list[int], *, max_context: int = 0, **sampling: Any
) -> Rig:
    rigs = [
        Rig(assets["model"], speculative_tokens=number, max_context=max_context)
        for number in (0, 8)
    ]
    for rig in rigs:
        if rig is rigs[1]:
            force_drafts(rig, {0: answer}, right=1.0)
        rig.submit(0, PROMPT, **sampling)
        rig.run()
    assert rigs[0].tokens == rigs[1].tokens and rigs[0].finished == rigs[1].finished
    assert cached(rigs[0]).keys() == cached(rigs[1]).keys()
    assert rigs[1].engine.stats().num_accepted_tokens > 0
    return rigs[1]


def test_ends_within_drafts_are_those_without(assets: dict[str, Path], answer: list[int]) -> None:
    free = check_ends(assets, answer, max_tokens=NUM_TOKENS, ignore_eos=True).tokens[0]
    for length in range(11, 15):
        rig = check_ends(assets, answer, max_tokens=length, ignore_eos=True)
        assert rig.tokens[0] == free[:length] and rig.finished[0] == "length"
        if free[length - 1] not in free[: length - 1]:
            stop = {"stop_token_ids": (free[length - 1],), "ignore_eos": True}
            rig = check_ends(assets, answer, max_tokens=NUM_TOKENS, **stop)
            assert rig.tokens[0] == free[:length] and rig.finished[0] == "stop"
    context = len(PROMPT) + 15
    rig = check_ends(assets, answer, max_tokens=100, max_context=context, ignore_eos=True)
    assert rig.tokens[0] == free[:15]
    # The first that may end it does, at a draft.
    least = next(at for at in range(12, NUM_TOKENS) if free[at] not in free[:at])
    asked = {"max_tokens": NUM_TOKENS, "min_tokens": least, "ignore_eos": True}
    rig = check_ends(assets, answer, **asked, stop_token_ids=(free[least],))
    assert rig.tokens[0] == free[: least + 1]


def test_a_stream_that_goes_on_elsewhere(assets: dict[str, Path]) -> None:
    asked = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0.9, "seed": 5}
    plain = Rig(assets["model"])
    plain.submit(0, PROMPT, assets["a"], **asked)
    plain.run()
    rig = Rig(assets["model"], speculative_tokens=4)
    force_drafts(rig, dict.fromkeys((1, 17, 39), plain.tokens[0]))
    for number in (1, 17, 39):
        rig.submit(number, PROMPT, assets["a"], generated=plain.tokens[0][:number], **asked)
    rig.run()
    for number in (1, 17, 39):
        assert rig.tokens[number] == plain.tokens[0][number:]


def test_only_what_is_known_beforehand_drafts(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], speculative_tokens=4)
    force_drafts(rig, dict.fromkeys(range(9), PROMPT))
    asked = {"max_tokens": 20, "ignore_eos": True}
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    for handle, name in enumerate(penalties):
        rig.submit(handle, PROMPT, None, **asked, **{name: 1.2})
    rig.run()
    assert rig.engine.stats().num_drafted_tokens == 0
    rig.submit(8, PROMPT, None, **asked)
    rig.run()
    assert rig.engine.stats().num_drafted_tokens > 0


def test_logits_that_are_no_numbers_count_where_they_are_reached(assets: dict[str, Path]) -> None:
    """Those of wrong drafts are nobody's."""
    plain = Rig(assets["model"])
    plain.submit(0, PROMPT, None, max_tokens=NUM_TOKENS, ignore_eos=True)
    plain.run()
    text = [*PROMPT, *plain.tokens[0]]
    bad = len(PROMPT) + 25

    def run(number: int) -> Rig:
        rig = Rig(assets["model"], speculative_tokens=number)

        def wrap(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def ruining(batch: Any, *rest: Any) -> torch.Tensor:
                logits = forward(batch, *rest)
                for row, at in enumerate(batch.logit_rows.tolist()):
                    position, token = int(batch.positions[at]), int(batch.token_ids[at])
                    if position == bad or token != text[position]:
                        logits[row] = float("nan")
                return logits

            return ruining

        wrap_forward(rig, wrap)
        if number:
            force_drafts(rig, plain.tokens)
        rig.submit(0, PROMPT, None, max_tokens=NUM_TOKENS, ignore_eos=True)
        rig.run()
        return rig

    for rig in (run(0), run(8)):
        assert rig.tokens[0] == plain.tokens[0][:26]
        assert isinstance(rig.failed[0], NonFiniteOutputError)
        assert rig.failed[0].metadata["num_generated_tokens"] == "26"
        assert not cached(rig)


def test_who_does_not_draft_is_in_every_step_and_steps_overlap(
    assets: dict[str, Path], answer: list[int]
) -> None:
    rig = Rig(assets["model"], speculative_tokens=4)
    force_drafts(rig, {0: answer}, right=1.0)
    schedule, steps, behind = rig.engine._scheduler.schedule, list[dict[int, int]](), list[int]()

    def noting(now_s: float) -> Any:
        chunks, failures = schedule(now_s)
        if chunks:
            behind.append(len(rig.engine._pipeline))
            steps.append({chunk.sequence.handle: len(chunk.drafts) for chunk in chunks})
        return chunks, failures

    rig.engine._scheduler.schedule = noting  # pyright: ignore[reportAttributeAccessIssue]
    rig.submit(0, PROMPT, None, max_tokens=NUM_TOKENS, ignore_eos=True)
    rig.submit(1, PROMPT, None, max_tokens=NUM_TOKENS, ignore_eos=True, presence_penalty=0.1)
    rig.run()
    assert rig.tokens[0] == answer[:NUM_TOKENS]
    with_other = [at for at, step in enumerate(steps) if 1 in step]
    assert with_other == list(range(NUM_TOKENS))
    assert behind[1:NUM_TOKENS] == [1] * (NUM_TOKENS - 1)
    for step, following in pairwise(steps):
        if step.get(0):
            assert 0 not in following or 1 not in step


def test_all_who_draft_do_so_in_the_same_steps(assets: dict[str, Path], answer: list[int]) -> None:
    rig = Rig(assets["model"], speculative_tokens=4)
    force_drafts(rig, dict.fromkeys(range(3), answer), right=1.0)
    scheduler, together = rig.engine._scheduler, list[int]()
    schedule = scheduler.schedule

    def noting(now_s: float) -> Any:
        waits = scheduler.awaits_drafts
        chunks, failures = schedule(now_s)
        drafting = [chunk for chunk in chunks if chunk.drafts]
        assert not (waits and drafting)
        together.append(len(drafting))
        return chunks, failures

    scheduler.schedule = noting  # pyright: ignore[reportAttributeAccessIssue]
    for handle in range(3):  # one after the other comes into the batch
        rig.submit(handle, PROMPT, None, max_tokens=NUM_TOKENS, ignore_eos=True)
        rig.step()
    while scheduler.running:
        rig.step()
        # While its tokens are told the device has the next step.
        assert rig.engine._pipeline or not scheduler.running
    rig.run()
    assert all(rig.tokens[handle] == answer[:NUM_TOKENS] for handle in range(3))
    assert together.count(3) > together.count(1)


def test_a_number_of_drafts_that_is_out_of_range_is_refused(assets: dict[str, Path]) -> None:
    with pytest.raises(DataPlaneError, match="speculative_tokens is 9; it must be 0 to 8") as error:
        Rig(assets["model"], speculative_tokens=9)
    assert error.value.reason == "OPTION_OUT_OF_RANGE"
