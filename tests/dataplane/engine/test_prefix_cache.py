"""Sharing computed blocks changes no token, and never crosses from one adapter to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataplane.engine.prefix_cache import Lineage
from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, add_adapter, make_model, save_model
from tests.helpers.scheduling import Simulation

TOLERANCE = 1e-4
SYSTEM = [3 + (7 * at) % 120 for at in range(43)]  # five full blocks of 8, and a part
QUESTIONS = [[10 + n, 20 + n, 30, 40 + 2 * n] for n in range(4)]
SAMPLING = {"max_tokens": 20, "ignore_eos": True}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    model = make_model("llama")
    paths = {"model": save_model(model, root / "model")}
    for index, name in enumerate("ab"):
        paths[name] = root / name
        model = add_adapter(model, name, paths[name], rank=8, target_modules=ATTENTION, seed=index)
    return paths


def alone(assets: dict[str, Path], prompt: list[int], adapter: str | None) -> Rig:
    """Handle 0 has the answer, computed with nothing cached."""
    rig = Rig(assets["model"])
    rig.submit(0, prompt, assets[adapter] if adapter else None, **SAMPLING)
    rig.run()
    return rig


def test_a_shared_system_prompt_is_computed_once(assets: dict[str, Path]) -> None:
    for adapter in (None, "a"):
        rig = Rig(assets["model"])
        for handle, question in enumerate(QUESTIONS):
            path = assets[adapter] if adapter else None
            rig.submit(handle, SYSTEM + question, path, **SAMPLING)
            rig.run()
        stats = rig.engine.stats()
        assert stats.num_prefix_hit_tokens == 3 * 40
        assert stats.num_prompt_tokens == 4 * 47
        for handle, question in enumerate(QUESTIONS):
            expected = alone(assets, SYSTEM + question, adapter)
            assert rig.tokens[handle] == expected.tokens[0]
            torch.testing.assert_close(
                torch.stack(rig.logits[handle]),
                torch.stack(expected.logits[0]),
                rtol=0,
                atol=TOLERANCE,
            )


def test_cached_tokens_are_reported(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    cached: dict[int, int] = {}

    def run(handle: int, prompt: list[int]) -> None:
        rig.submit(handle, prompt, None, max_tokens=2, ignore_eos=True)
        while rig.engine.has_work:
            for output in rig.engine.step().outputs:
                if output.timings:
                    cached[handle] = output.timings.num_cached_tokens

    run(0, SYSTEM)
    run(1, SYSTEM)
    run(2, SYSTEM[:16])  # whole blocks; yet the last token is computed, to have something to say
    run(3, [9, *SYSTEM])
    assert cached == {0: 0, 1: 40, 2: 8, 3: 0}


def test_a_conversation_goes_on_where_it_was(assets: dict[str, Path]) -> None:
    """What was generated is shared, too."""
    rig = Rig(assets["model"])
    rig.submit(0, SYSTEM, assets["a"], **SAMPLING)
    rig.run()
    turn = [*SYSTEM, *rig.tokens[0], 5, 6]
    rig.submit(1, turn, assets["a"], **SAMPLING)
    rig.run()
    # All but the last token of the answer had been computed: 62 tokens, 7 blocks.
    assert rig.engine.stats().num_prefix_hit_tokens == 56
    assert rig.tokens[1] == alone(assets, turn, "a").tokens[0]


def test_adapters_share_nothing(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    prompt = SYSTEM + QUESTIONS[0]
    order = [None, "a", "b", None, "a", "b"]
    for handle, adapter in enumerate(order):
        rig.submit(handle, prompt, assets[adapter] if adapter else None, **SAMPLING)
        rig.run()
        assert rig.engine.stats().num_prefix_hit_tokens == max(0, handle - 2) * 40
    answers = {adapter: alone(assets, prompt, adapter).tokens[0] for adapter in (None, "a", "b")}
    assert len({tuple(tokens) for tokens in answers.values()}) == 3
    for handle, adapter in enumerate(order):
        assert rig.tokens[handle] == answers[adapter]
    owners = {owner.partition(":")[0] for owner in rig.engine.inspect(1).owners}
    assert owners == {"", "adapter", "prefix"}
    assert len({o for o in rig.engine.inspect(1).owners if o.startswith("prefix:")}) == 3


def test_scopes_share_nothing(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    prompt = SYSTEM + QUESTIONS[0]
    for handle, scope in enumerate(["", "3:ada", "3:bob", "", "3:ada", "3:bob"]):
        rig.submit(handle, prompt, assets["a"], cache_scope=scope, **SAMPLING)
        rig.run()
        assert rig.engine.stats().num_prefix_hit_tokens == max(0, handle - 2) * 40
        assert rig.tokens[handle] == rig.tokens[0]


def test_blocks_of_every_scope_make_room(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], num_pages=24)
    for handle in range(40):
        rig.submit(handle, SYSTEM + QUESTIONS[0], cache_scope=f"scope {handle}", **SAMPLING)
        rig.run()
        assert rig.engine.stats().num_prefix_hit_tokens == 0
    assert len(rig.engine._prefixes._roots) <= 4, "what is gone leaves nothing behind"


def test_requests_at_once_share_what_was_computed_twice(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], max_batch_tokens=200)
    prompt = SYSTEM + QUESTIONS[0]
    for handle in range(4):
        rig.submit(handle, prompt, assets["a"], **SAMPLING)
    rig.step()
    rig.step()
    held = [sequence.block_table[:5] for sequence in rig.engine._scheduler.running]
    assert len(held) == 4 and all(pages == held[0] for pages in held)
    rig.run()
    assert all(rig.tokens[h] == alone(assets, prompt, "a").tokens[0] for h in range(4))


def test_who_was_here_before_does_not_change_a_bit_of_an_answer(assets: dict[str, Path]) -> None:
    """What another request computed as its prompt is rounded otherwise than what is generated."""
    prompt = SYSTEM[:5]
    expected = alone(assets, prompt, "a")
    rig = Rig(assets["model"])
    rig.submit(1, prompt + expected.tokens[0][:17], assets["a"], max_tokens=3, ignore_eos=True)
    rig.run()
    for handle in (0, 2):  # the second finds blocks of the first, too
        rig.submit(handle, prompt, assets["a"], **SAMPLING)
        rig.run()
        for mine, alone_then in zip(rig.logits[handle], expected.logits[0], strict=True):
            assert torch.equal(mine, alone_then)
    stats = rig.engine.stats()
    assert stats.num_used_pages == 0
    rig.engine.check_integrity()


def test_tokens_are_the_same_across_preemption_and_eviction(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"], num_pages=44)
    jobs = [(SYSTEM + QUESTIONS[n % 4], "ab"[n % 2]) for n in range(10)]
    for handle, (prompt, adapter) in enumerate(jobs):
        rig.submit(handle, prompt, assets[adapter], max_tokens=60, ignore_eos=True)
    rig.run()
    stats = rig.engine.stats()
    assert stats.num_preemptions > 0 and stats.num_prefix_hit_tokens > 0
    whole = Rig(assets["model"])
    for handle, (prompt, adapter) in enumerate(jobs):
        whole.submit(handle, prompt, assets[adapter], max_tokens=60, ignore_eos=True)
    whole.run()
    assert rig.tokens == whole.tokens
    assert rig.tokens[0][:20] == alone(assets, jobs[0][0], "a").tokens[0]


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    def recomputed(prefix_cache: bool) -> int:
        """Tokens computed for two sequences that do not fit together for long."""
        simulation = Simulation(
            num_pages=24, max_running=2, max_batch_tokens=64, prefix_cache=prefix_cache
        )
        simulation.submit(0, 40, max_tokens=20)
        simulation.submit(1, 40, max_tokens=20)
        simulation.run()
        assert simulation.scheduler.counters.num_preemptions > 0
        return simulation.num_computed

    at_least = 2 * (40 + 19)
    assert recomputed(True) < recomputed(False)
    assert recomputed(True) - at_least < (recomputed(False) - at_least) / 2


def test_what_a_failed_sequence_computed_is_not_shared() -> None:
    simulation = Simulation()
    prompt = list(range(20))
    simulation.submit(0, prompt[:9], max_tokens=2)
    simulation.run()
    simulation.submit(1, prompt, max_tokens=9)
    simulation.submit(2, [*prompt[:9], 7, 7, 7, 7, 7], max_tokens=9)  # holds the first two blocks
    for _ in range(4):
        simulation.step()
    assert len(simulation.prefixes.match(Lineage(), prompt)) == 4
    simulation.scheduler.remove(simulation.live.pop(1), simulation.now_s, ruined=True)
    simulation.check_integrity()
    assert len(simulation.prefixes.match(Lineage(), prompt)) == 2
    simulation.run()


def test_without_the_cache_nothing_is_kept() -> None:
    simulation = Simulation(prefix_cache=False)
    for handle in range(3):
        simulation.submit(handle, list(range(20)))
        simulation.run()
    assert simulation.prefixes.num_blocks == 0
    assert simulation.pool.allocator.num_free == simulation.pool.num_pages
    assert simulation.scheduler.counters.num_prefix_hit_tokens == 0


def test_leaves_go_before_what_they_hang_on() -> None:
    simulation = Simulation(num_pages=20)
    simulation.submit(0, list(range(33)), max_tokens=1)
    simulation.run()
    for left in range(7, -1, -1):
        simulation.pool.idle.reclaim(1)
        simulation.check_integrity()
        match = simulation.prefixes.match(Lineage(), list(range(33)))
        assert [block.key.tokens[0] for block in match] == [4 * n for n in range(left)]


def test_how_long_blocks_live_shows_in_evictions() -> None:
    simulation = Simulation(num_pages=20)
    prefixes = simulation.prefixes

    def lives_s() -> float:
        return prefixes.cached_for_s(simulation.now_s)

    def fill(handle: int) -> None:
        simulation.submit(handle, [handle, *range(39)], max_tokens=1)  # half of the pool
        simulation.run()

    fill(0)
    assert lives_s() > 3600, "nothing was ever evicted"
    simulation.now_s += 30.0
    fill(1)
    assert lives_s() > 3600
    simulation.now_s += 30.0
    fill(2)  # pushes out what was used half a minute ago, or a whole one
    assert 25.0 < lives_s() < 65.0
    for handle in range(3, 30):
        simulation.now_s += 5.0
        fill(handle)
    assert 4.0 < lives_s() < 20.0, "of late they live for a turn or two"
    simulation.now_s += 500.0
    assert 500.0 < lives_s() < 520.0, "none of what came since is gone"
    assert Simulation(prefix_cache=False).prefixes.cached_for_s(1.0) == 0.0


def test_a_failed_sequence_evicts_nothing() -> None:
    simulation = Simulation()
    simulation.submit(0, list(range(20)), max_tokens=9)
    for _ in range(4):
        simulation.step()
    simulation.scheduler.remove(simulation.live.pop(0), simulation.now_s, ruined=True)
    assert simulation.prefixes.num_blocks == 0
    assert simulation.prefixes.cached_for_s(simulation.now_s) > 3600
