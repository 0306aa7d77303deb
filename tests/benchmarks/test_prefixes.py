"""The benchmark of placement by prefixes, small."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.placement.plane import PlaneCosts
from benchmarks.prefixes import cost, simulated
from benchmarks.prefixes.conversations import Traffic, conversations

COSTS = PlaneCosts(num_pages=4096)
TALKS = Traffic(num_systems=4, least_gap_s=5.0, gap_s=2.0)


def test_turns_have_those_before_in_them() -> None:
    turns = conversations(TALKS, 2.0, 60.0, 1)
    assert turns == conversations(TALKS, 2.0, 60.0, 1) != conversations(TALKS, 2.0, 60.0, 2)
    assert [each.at_s for each in turns] == sorted(each.at_s for each in turns)
    last = max((each for each in turns), key=lambda each: len(each.prompt))
    before = [each for each in turns if each.conversation == last.conversation][:-1]
    assert len(before) == TALKS.num_turns - 1
    for each in before:
        assert last.prompt[: len(each.prompt)] == each.prompt
        assert set(last.prompt[len(each.prompt) :][: each.num_output]) == {0}
    assert len({each.prompt[: TALKS.system_tokens] for each in turns}) == TALKS.num_systems


def test_conversations_find_what_they_computed() -> None:
    turns = conversations(TALKS, 8.0, 40.0, 3)
    old, new = (
        simulated.run(turns, COSTS, num_planes=4, by_prefixes=each, after_s=10.0)
        for each in (False, True)
    )
    assert old["num_served"] == new["num_served"] == old["num_requests"]
    assert new["cached_share"] > 0.75 > old["cached_share"] + 0.05
    assert new["mean_ttft_s"] < 0.8 * old["mean_ttft_s"]


def test_everybodys_system_prompt_does_not_gather_everybody() -> None:
    one = replace(TALKS, num_systems=1, num_turns=1)
    turns = conversations(one, 12.0, 25.0, 3)
    found = simulated.run(turns, COSTS, num_planes=4, by_prefixes=True, after_s=5.0)
    assert found["busiest_to_even"] < 1.5
    assert found["cached_share"] > 0.7


def test_costs_are_told_for_all_lengths() -> None:
    lines = cost.measure(num_planes=2, num_blocks=1)
    assert [each["num_hashes"] > 0 for each in lines] == [False, True, True]
    assert lines[0]["redis_us"] > 0 and lines[0]["admission_ratio"] == 1.0
