"""Step N+1 is scheduled and launched while step N runs: nobody's tokens change, no page is reused
too early, and what is measured is the device's work."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from dataplane.engine import device
from dataplane.engine.prefix_cache import Lineage
from dataplane.errors import NonFiniteOutputError
from tests.helpers.engine import Rig
from tests.helpers.forwards import Forward, count_forwards, guard_pages, wrap_forward
from tests.helpers.models import ATTENTION, add_adapter, make_model, save_model
from tests.helpers.traffic import check_traffic, meet_traffic, random_requests

PROMPT = [5, 6, 7, 8, 9]
WAIT_S = 60.0  # for what happens in milliseconds, unless it never does


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    model = make_model("llama")
    paths = {"model": save_model(model, root / "model")}
    for index, (name, rank) in enumerate([("a", 4), ("b", 3)]):
        paths[name] = root / name
        model = add_adapter(
            model, name, paths[name], rank=rank, target_modules=ATTENTION, seed=index
        )
    return paths


def test_a_step_is_scheduled_and_launched_while_the_one_before_it_runs(
    assets: dict[str, Path],
) -> None:
    rig = Rig(assets["model"])
    launched: list[threading.Event] = [threading.Event() for _ in range(8)]
    pipeline = rig.engine._pipeline
    launch, number = pipeline.launch, iter(range(8))

    def telling_launch(*arguments: Any) -> None:
        launch(*arguments)
        launched[next(number)].set()

    def wrap(forward: Forward) -> Forward:
        following = iter(launched[1:])

        def waiting(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            logits = forward(batch, pool, page_tokens)
            after = next(following)
            assert after.wait(WAIT_S), "the next step was not launched while this one ran"
            return logits

        return waiting

    pipeline.launch = telling_launch  # pyright: ignore[reportAttributeAccessIssue]
    wrap_forward(rig, wrap)
    rig.submit(0, PROMPT, assets["a"], max_tokens=7, ignore_eos=True)
    launched[7].set()  # nothing follows the last one
    rig.run()
    assert len(rig.tokens[0]) == 7


def test_only_an_end_that_nobody_can_foresee_costs_a_token(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], max_context=20)
    counts = count_forwards(rig)
    rig.submit(0, PROMPT, assets["a"], max_tokens=6, ignore_eos=True)
    rig.run()
    assert counts == [5, 1, 1, 1, 1, 1]
    rig.submit(1, [4, *PROMPT], assets["a"], max_tokens=100, ignore_eos=True)
    rig.run()
    free = rig.tokens[1]
    assert len(free) == 14 and counts[6:] == [6] + [1] * 13  # ends where the context does
    del counts[:]
    end = next(at for at in range(3, 14) if free[at] not in free[:at])
    stops = (free[end],)
    rig.submit(2, [4, *PROMPT], assets["b"], max_tokens=1)
    rig.submit(3, [4, *PROMPT], assets["a"], max_tokens=99, stop_token_ids=stops, ignore_eos=True)
    rig.run()
    assert rig.tokens[3] == free[: end + 1] and rig.finished[3] == "stop"
    assert sum(counts) == 6 + 6 + end + 1


def test_a_token_beyond_the_end_never_enters_the_prefix_cache(assets: dict[str, Path]) -> None:
    def blocks_left(depth: int, stop: int, prompt: list[int]) -> tuple[int, int]:
        rig = Rig(assets["model"], pipeline_depth=depth)
        rig.submit(0, prompt, None, max_tokens=60, ignore_eos=True, stop_token_ids=(stop,))
        rig.run()
        return len(prompt) + len(rig.tokens[0]), rig.engine.stats().num_cached_blocks

    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, None, max_tokens=60, ignore_eos=True)
    rig.run()
    free = rig.tokens[0]
    full = [n for n in range(3, 59, 8) if free[n - 1] not in free[: n - 1]]
    assert full, "no stop token ends it where a block is full"
    for num_output in full:
        length, cached = blocks_left(2, free[num_output - 1], PROMPT)
        assert length == 5 + num_output and length % 8 == 0
        assert cached == blocks_left(1, free[num_output - 1], PROMPT)[1] == length // 8 - 1


def test_a_ruined_sequence_leaves_nothing_to_share(assets: dict[str, Path]) -> None:
    """Its next step is in flight already when that is found out."""
    system = [3 + (7 * at) % 120 for at in range(30)]
    rig = Rig(assets["model"])
    guard_pages(rig, late=False)

    def wrap(forward: Forward) -> Forward:
        calls = iter(range(10_000))

        def ruining(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            logits = forward(batch, pool, page_tokens)
            if next(calls) == 2:
                logits[0] = float("nan")
            return logits

        return ruining

    wrap_forward(rig, wrap)
    rig.submit(0, system, None, max_tokens=20, ignore_eos=True)
    rig.submit(1, [9, 8, 7], assets["a"], max_tokens=20, ignore_eos=True)
    while 0 not in rig.failed:
        rig.step()
    assert isinstance(rig.failed[0], NonFiniteOutputError)
    assert not rig.engine._prefixes.match(Lineage(), [*system, 1])
    rig.run()
    calm = Rig(assets["model"])
    calm.submit(1, [9, 8, 7], assets["a"], max_tokens=20, ignore_eos=True)
    calm.run()
    assert rig.tokens[1] == calm.tokens[1]


def test_what_a_step_raises_on_the_device_comes_out_of_the_engine(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])

    def wrap(forward: Forward) -> Forward:
        calls = iter(range(100))

        def failing(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            if next(calls) == 3:
                raise RuntimeError("the device is on fire")
            return forward(batch, pool, page_tokens)

        return failing

    wrap_forward(rig, wrap)
    rig.submit(0, PROMPT, None, max_tokens=20, ignore_eos=True)
    with pytest.raises(RuntimeError, match="on fire"):
        for _ in range(6):
            rig.step()
    assert len(rig.tokens[0]) == 3
    rig.engine.close()
    assert not rig.engine._pipeline


def test_costs_are_the_time_of_the_devices_work(
    assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(assets["model"])
    now_s = 100.0
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now_s))

    def wrap(forward: Forward) -> Forward:
        def slow(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            nonlocal now_s
            now_s += 0.25 * len(batch.token_ids)
            return forward(batch, pool, page_tokens)

        return slow

    wrap_forward(rig, wrap)
    rig.submit(0, PROMPT, None, max_tokens=10, ignore_eos=True)
    times = []
    while rig.engine.has_work:
        times += rig.engine.step().times
    assert [each.work_s for each in times] == [1.25] + [0.25] * 9
    assert {each.idle_s for each in times} == {0.0}
    stats = rig.engine.stats()
    assert stats.decode_step_s == pytest.approx(0.25)
    assert stats.prefill_tokens_per_s == pytest.approx(4.0)
    now_s += 3.0  # nobody asks for anything
    rig.submit(1, [*PROMPT, 3], None, max_tokens=1)
    times.clear()
    while rig.engine.has_work:
        times += rig.engine.step().times
    assert [each.idle_s for each in times] == [3.0]


def test_no_step_is_put_off_once_the_device_is_done(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    go = threading.Semaphore(2)

    def wrap(forward: Forward) -> Forward:
        def waiting(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            assert go.acquire(timeout=WAIT_S)
            return forward(batch, pool, page_tokens)

        return waiting

    wrap_forward(rig, wrap)
    engine = rig.engine
    assert engine.spare_s == 0.0
    rig.submit(0, PROMPT, None, max_tokens=30, ignore_eos=True)
    engine._costs.observe_step(1000.0, num_prefill=0, num_decode=1)
    for _ in range(3):  # the second one's token is here, the third step waits to begin
        rig.step()
    assert len(rig.tokens[0]) == 2
    assert 0.0 < engine.spare_s < 1000.0
    go.release(100)
    newest = engine._pipeline._flights[-1].launched
    newest.wait()
    assert engine.spare_s == 0.0
    rig.run()


@pytest.mark.parametrize("late", [False, True])
def test_a_page_computed_twice_stays_until_no_launched_step_reads_it(
    assets: dict[str, Path], late: bool
) -> None:
    prompt = [3 + 5 * at % 120 for at in range(11)]
    rig = Rig(assets["model"], max_batch_tokens=48)
    guard_pages(rig, late=late)
    for handle in range(3):
        rig.submit(handle, prompt, assets["a"], max_tokens=20, ignore_eos=True)
    rig.step()
    rig.step()
    held = {sequence.block_table[0] for sequence in rig.engine._scheduler.running}
    assert len(held) == 1  # they share it from now on, and the step in flight reads the others
    owners = rig.pool.allocator.owners()
    assert owners.count("sequence:1") == owners.count("sequence:2") == 2
    rig.run()
    assert rig.tokens[0] == rig.tokens[1] == rig.tokens[2]


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6), late=st.booleans())
@example(seed=27228, late=True)  # such a tie
def test_tokens_are_those_of_the_synchronous_run_whatever_happens(
    assets: dict[str, Path], seed: int, late: bool
) -> None:
    """Requests that come, stop, are aborted and preempted, in a pool for two or three of them."""
    dice = random.Random(seed)
    num_pages = dice.randrange(14, 23)
    rig = Rig(assets["model"], num_pages=num_pages, max_running=5, max_batch_tokens=24)
    guard_pages(rig, late=late)
    calm = Rig(assets["model"], pipeline_depth=1)
    requests = random_requests(dice, assets, 14)
    asked, aborted = meet_traffic(rig, requests, dice)
    for handle, request in enumerate(asked):
        request.submit(calm, handle)
    calm.run()
    check_traffic(rig, calm, aborted, num_pages)
