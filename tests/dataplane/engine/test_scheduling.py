"""What the engine promises about order, memory and ends of requests."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from dataplane.errors import (
    AdapterRefusedError,
    DeadlineError,
    NonFiniteOutputError,
    PoolTooSmallError,
    QueueFullError,
)
from storage.errors import SourceUnreadableError
from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, VOCAB, add_adapter, make_model, save_model

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    model = make_model("llama")
    paths = {"model": save_model(model, root / "model")}
    for index, (name, rank) in enumerate([("a", 4), ("b", 32), ("c", 8)]):
        paths[name] = root / name
        model = add_adapter(
            model, name, paths[name], rank=rank, target_modules=ATTENTION, seed=index
        )
    return paths


def alone(assets: dict[str, Path], prompt: list[int], adapter: str | None, **kw) -> list[int]:
    rig = Rig(assets["model"])
    rig.submit(1, prompt, assets[adapter] if adapter else None, **kw)
    rig.run()
    return rig.tokens[1]


def test_preempted_sequences_finish_with_the_same_tokens(assets: dict[str, Path]) -> None:
    generator = random.Random(7)
    jobs = [
        ([generator.randrange(3, VOCAB) for _ in range(10 + index)], generator.choice("abc"))
        for index in range(12)
    ]
    # Room for all three adapters never, and for two or three sequences at full length.
    rig = Rig(assets["model"], num_pages=40)
    for handle, (prompt, adapter) in enumerate(jobs):
        rig.submit(handle, prompt, assets[adapter], max_tokens=40, ignore_eos=True)
    preempted = 0
    scheduler = rig.engine._scheduler
    preempt = scheduler._preempt

    def counting(sequence, now_s):
        nonlocal preempted
        preempted += 1
        preempt(sequence, now_s)

    scheduler._preempt = counting  # pyright: ignore[reportAttributeAccessIssue]
    rig.run()
    assert preempted > 0
    assert not rig.failed
    for handle, (prompt, adapter) in enumerate(jobs):
        expected = alone(assets, prompt, adapter, max_tokens=40, ignore_eos=True)
        assert rig.tokens[handle] == expected


def test_idle_adapters_go_when_pages_run_out(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], num_pages=42)
    for handle, adapter in enumerate("abcabc"):
        rig.submit(handle, PROMPT, assets[adapter], max_tokens=100, ignore_eos=True)
        rig.run()
    assert not rig.failed
    for handle, adapter in enumerate("abcabc"):
        assert rig.tokens[handle] == alone(assets, PROMPT, adapter, max_tokens=100, ignore_eos=True)


def test_scattered_pages_give_the_same_tokens(assets: dict[str, Path]) -> None:
    """An adapter whose pages are not consecutive is read through its page table."""
    rig = Rig(assets["model"], num_pages=64)
    allocator = rig.pool.allocator
    blockers = allocator.take_run(64, "blocker")
    assert blockers
    allocator.give_back(blockers[::2], "blocker")
    rig.submit(0, PROMPT, assets["b"], max_tokens=20, ignore_eos=True)
    while rig.engine.has_work:  # the blockers are on nobody's claim, so no integrity check here
        for output in rig.engine.step().outputs:
            rig.tokens.setdefault(output.handle, []).extend(output.token_ids)
    resident = next(iter(rig.engine._resident))
    assert resident.pages.first == -1
    assert rig.tokens[0] == alone(assets, PROMPT, "b", max_tokens=20, ignore_eos=True)
    allocator.give_back(blockers[1::2], "blocker")
    rig.engine.check_integrity()


def test_a_loading_adapter_holds_up_nobody_else(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, assets["a"], arrival_s=0.0)
    rig.run()  # "a" is resident
    rig.loader.hold = True
    rig.submit(1, PROMPT, assets["b"], arrival_s=1.0)
    rig.submit(2, PROMPT, assets["a"], arrival_s=2.0)
    rig.submit(3, PROMPT, None, arrival_s=3.0)
    for _ in range(40):
        rig.step()
    assert set(rig.finished) == {0, 2, 3}
    assert rig.engine.is_waiting_for_loads
    rig.loader.hold = False
    rig.run()
    assert rig.tokens[1] == alone(assets, PROMPT, "b")
    assert rig.loader.requests.count(rig.loader.requests[-1]) == 1


def test_a_failed_load_ends_only_its_own_requests(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    rig.loader.failing.add(str(assets["a"]))
    rig.submit(0, PROMPT, assets["a"])
    rig.submit(1, PROMPT, assets["b"])
    rig.submit(2, PROMPT, assets["a"])
    rig.run()
    assert [type(rig.failed[handle]) for handle in (0, 2)] == [SourceUnreadableError] * 2
    assert rig.tokens[1] == alone(assets, PROMPT, "b")
    rig.loader.failing.clear()  # failures are not remembered
    rig.submit(3, PROMPT, assets["a"])
    rig.run()
    assert rig.tokens[3] == alone(assets, PROMPT, "a")


def test_one_content_of_two_sources_fails_only_where_it_is_missing(
    assets: dict[str, Path], tmp_path: Path
) -> None:
    """Who has the same content of a source that is well gets tokens all the same; and once it is
    here, nobody's source is asked."""
    copy = Path(shutil.copytree(assets["a"], tmp_path / "copy"))
    for broken, handles in ((assets["a"], {0, 2}), (copy, set[int]())):
        rig = Rig(assets["model"])
        rig.loader.failing.add(str(broken))
        for handle in range(4):
            rig.submit(handle, PROMPT, (assets["a"], copy)[handle % 2])
        rig.run()
        assert set(rig.failed) == handles
        for handle in set(range(4)) - handles:
            assert rig.tokens[handle] == alone(assets, PROMPT, "a")


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_abort_frees_pages_once_no_launched_step_has_them(
    assets: dict[str, Path], pipeline_depth: int
) -> None:
    rig = Rig(assets["model"], pipeline_depth=pipeline_depth)
    for handle in range(8):
        rig.submit(handle, PROMPT, assets["abc"[handle % 3]], max_tokens=100, ignore_eos=True)
    for _ in range(5):
        rig.step()
    assert rig.engine.stats().num_used_pages > 0
    for handle in range(8):
        rig.engine.abort(handle)
        rig.engine.abort(handle)  # twice is no error
        rig.engine.check_integrity()
    stats = rig.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert bool(stats.num_used_pages) == rig.engine.has_work == (pipeline_depth == 2)
    told = dict(rig.tokens)
    rig.step()
    assert rig.engine.stats().num_used_pages == 0
    assert not rig.engine.has_work
    assert rig.tokens == told  # what the last step made for them is nobody's


def test_deadline_ends_waiting_and_running_requests(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], max_running=1)
    now_s = 1000.0
    rig.engine._clock = lambda: now_s
    rig.submit(0, PROMPT, None, max_tokens=200, ignore_eos=True, deadline_s=now_s + 2000.0)
    rig.submit(1, PROMPT, None, arrival_s=1.0, deadline_s=now_s + 1000.0)
    rig.submit(2, PROMPT, assets["a"], arrival_s=2.0)
    for passed_s, ended in ((999.0, []), (1.0, [1]), (999.0, [1]), (1.0, [1, 0])):
        now_s += passed_s
        for _ in range(4):
            rig.step()
        assert list(rig.failed) == ended
    assert len(rig.tokens[0]) > 4 and 1 not in rig.tokens
    rig.run()
    assert isinstance(rig.failed[0], DeadlineError)
    assert isinstance(rig.failed[1], DeadlineError)
    assert rig.tokens[2] == alone(assets, PROMPT, "a")


def test_what_can_never_fit_is_refused_and_hurts_nobody(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], num_pages=16)
    rig.submit(0, PROMPT, None, max_tokens=200)
    rig.submit(1, PROMPT, None, max_tokens=20, ignore_eos=True)
    rig.submit(2, PROMPT, assets["b"], max_tokens=100)  # fits alone, not with its adapter
    rig.run()
    for handle in (0, 2):
        error = rig.failed[handle]
        assert isinstance(error, PoolTooSmallError)
        assert error.reason == "POOL_TOO_SMALL" and "--pool-bytes" in error.message
    assert len(rig.tokens[1]) == 20


def test_full_queue_is_refused(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], max_running=1, max_waiting=2)
    for handle in range(4):
        rig.submit(handle, PROMPT, None)
    rig.run()
    assert [type(error) for error in rig.failed.values()] == [QueueFullError] * 2
    assert rig.failed[2].retry_after_s  # pyright: ignore[reportAttributeAccessIssue]


def test_continuing_a_request_gives_the_rest_of_its_tokens(assets: dict[str, Path]) -> None:
    sampling = {"max_tokens": 30, "temperature": 1.0, "seed": 11, "ignore_eos": True}
    whole = alone(assets, PROMPT, "a", **sampling)
    for cut in (1, 8, 29):
        rig = Rig(assets["model"])
        rig.submit(0, PROMPT, assets["a"], generated=whole[:cut], **sampling)
        rig.run()
        assert rig.tokens[0] == whole[cut:]
    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, assets["a"], generated=whole, **sampling)
    rig.run()
    assert rig.finished[0] == "length" and rig.tokens[0] == []


def test_sampled_tokens_do_not_depend_on_the_batch(assets: dict[str, Path]) -> None:
    sampling = {"max_tokens": 25, "temperature": 0.9, "top_p": 0.95, "ignore_eos": True}
    rig = Rig(assets["model"], max_batch_tokens=70)
    for handle in range(10):
        rig.submit(handle, PROMPT, assets["abc"[handle % 3]], seed=handle, **sampling)
    rig.run()
    for handle in range(10):
        name = "abc"[handle % 3]
        assert rig.tokens[handle] == alone(assets, PROMPT, name, seed=handle, **sampling)
    assert len({tuple(tokens) for tokens in rig.tokens.values()}) == 10


def test_an_adapter_that_overflows_fails_alone(assets: dict[str, Path], tmp_path: Path) -> None:
    model = make_model("llama")
    add_adapter(
        model, "huge", tmp_path / "huge", rank=4, target_modules=ATTENTION, seed=1, size=1e38
    )
    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, assets["a"], max_tokens=30, ignore_eos=True)
    rig.submit(1, PROMPT, tmp_path / "huge", max_tokens=30, ignore_eos=True)
    rig.run()
    assert isinstance(rig.failed[1], NonFiniteOutputError | AdapterRefusedError)
    # Its pages go to others now, NaN and all.
    rig.submit(2, PROMPT * 20, assets["b"], max_tokens=30, ignore_eos=True)
    rig.run()
    assert rig.tokens[0] == alone(assets, PROMPT, "a", max_tokens=30, ignore_eos=True)
    assert rig.tokens[2] == alone(assets, PROMPT * 20, "b", max_tokens=30, ignore_eos=True)


def test_min_tokens_and_stop_tokens(assets: dict[str, Path]) -> None:
    free = alone(assets, PROMPT, "a", max_tokens=20, ignore_eos=True)
    stop = free[4]
    first = free.index(stop)
    rig = Rig(assets["model"])
    rig.submit(0, PROMPT, assets["a"], max_tokens=20, ignore_eos=True, stop_token_ids=(stop,))
    rig.submit(
        1,
        PROMPT,
        assets["a"],
        max_tokens=20,
        ignore_eos=True,
        stop_token_ids=(stop,),
        min_tokens=first + 3,
    )
    rig.run()
    assert rig.tokens[0] == free[: first + 1] and rig.finished[0] == "stop"
    assert stop not in rig.tokens[1][: first + 3]
    assert len(rig.tokens[1]) > first + 3


def test_random_traffic_leaves_no_page_behind(assets: dict[str, Path]) -> None:
    generator = random.Random(3)
    rig = Rig(assets["model"], num_pages=40, max_running=8, max_batch_tokens=24)
    handle = 0
    for _ in range(300):
        if generator.random() < 0.4:
            adapter = generator.choice([None, "a", "b", "c"])
            rig.submit(
                handle,
                [generator.randrange(3, VOCAB) for _ in range(generator.randrange(1, 60))],
                assets[adapter] if adapter else None,
                max_tokens=generator.randrange(1, 40),
                arrival_s=float(handle),
            )
            handle += 1
        if handle and generator.random() < 0.1:
            rig.engine.abort(generator.randrange(handle))
        rig.step()  # proves integrity
    rig.run()
    assert not rig.failed
    rig.engine.clear_idle()
    rig.engine.check_integrity()
    assert rig.pool.allocator.num_free == 40
