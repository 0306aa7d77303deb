"""Properties of the placement policy."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.fleet.model import Load
from controlplane.fleet.outlook import ExpectedWait, Outlook, TierCost
from controlplane.placement.expectation import RequestNeeds, SentPrefix
from controlplane.placement.placement import (
    Candidate,
    Choice,
    PlacementPolicy,
    Refusal,
    Why,
    is_full,
    load_of,
    place,
)

NOW = 1000.0
POLICY = PlacementPolicy()
DIGEST = "d" * 64


def candidate(name: str, *, running: int = 0, waiting: int = 0, tier: str = "") -> Candidate:
    load = Load(num_running=running, num_waiting=waiting, max_running=16)
    return Candidate(name, f"{name}:1", "base", load, 0, tier, NOW)


def choose(*candidates: Candidate, digest: str = DIGEST, **needs: object) -> str:
    choice = placed(*candidates, digest=digest, **needs)
    assert isinstance(choice, Choice), choice
    return choice.candidate.data_plane_id


def placed(*candidates: Candidate, digest: str = DIGEST, **needs: object) -> Choice | Refusal:
    asked = RequestNeeds(digest=digest, **needs)  # type: ignore[arg-type]
    return place(candidates, asked, base_model="base", now_s=NOW, policy=POLICY)


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8))
    return [
        Candidate(
            data_plane_id=name,
            endpoint=f"{name}:1",
            base_model=draw(st.sampled_from(["base", "base", "other"])),
            load=Load(
                num_running=draw(st.integers(0, 40)),
                num_waiting=draw(st.integers(0, 200)),
                max_running=draw(st.sampled_from([0, 1, 8, 32])),
            ),
            num_placed=draw(st.integers(0, 50)),
            tier=draw(st.sampled_from(["", "pool", "host", "disk"])),
            last_heartbeat_s=NOW - draw(st.sampled_from([0.0, 1.0, 5.0, 5.1])),
        )
        for name in names
    ]


@given(fleets(), st.sets(st.sampled_from("abcdefgh"), max_size=4), st.sampled_from(["", DIGEST]))
def test_properties(fleet: list[Candidate], excluded: set[str], digest: str) -> None:
    def run(candidates: list[Candidate]) -> Choice | Refusal:
        return place(
            candidates,
            RequestNeeds(digest=digest),
            base_model="base",
            excluded=excluded,
            now_s=NOW,
            policy=POLICY,
        )

    choice = run(fleet)
    serving = [c for c in fleet if c.base_model == "base" and NOW - c.last_heartbeat_s <= 5]
    eligible = [c for c in serving if c.data_plane_id not in excluded]
    not_full = [c for c in eligible if not is_full(c, POLICY)]
    if isinstance(choice, Refusal):
        assert not not_full
        expected = Why.ALL_FULL if eligible else Why.ALL_EXCLUDED
        assert choice.why is (expected if serving else Why.NO_DATA_PLANE)
        return
    chosen = choice.candidate
    assert chosen in not_full and choice.expected_s is None
    loads = [load_of(c, POLICY) for c in not_full]
    # Bounded: residency never costs more load than it is worth, and never a free place.
    assert load_of(chosen, POLICY) <= min(loads) + max(POLICY.bonus.values()) + 1e-9
    assert load_of(chosen, POLICY) < 1 or min(loads) >= 1
    if not digest:
        assert load_of(chosen, POLICY) == min(loads)
    shuffled = random.Random(0).sample(fleet, len(fleet))
    assert run(shuffled) == choice


def test_faster_tiers_win_at_equal_load() -> None:
    tiers = [candidate("a"), candidate("b", tier="disk"), candidate("c", tier="host")]
    assert choose(*tiers, candidate("d", tier="pool")) == "d"
    assert choose(*tiers) == "c"
    assert choose(*tiers[:2]) == "b"


def test_a_hot_spot_spills() -> None:
    cold = candidate("cold", running=4)
    assert choose(candidate("hot", running=8, tier="pool"), cold) == "hot"
    assert choose(candidate("hot", running=13, tier="pool"), cold) == "cold"
    nearly = candidate("cold", running=15)
    assert choose(candidate("hot", running=16, tier="pool"), nearly) == "cold"


def test_waiting_and_placed_requests_count() -> None:
    busy = candidate("busy", running=4, waiting=2)
    other = candidate("other", running=5)
    assert choose(busy, other, digest="") == "other"
    assert choose(replace(other, num_placed=2), busy, digest="") == "busy"


def test_adapters_that_nobody_holds_have_homes_and_spread() -> None:
    fleet = [candidate(name) for name in "abcd"]
    homes = {i: choose(*fleet, digest=f"{i:064x}") for i in range(64)}
    assert set(homes.values()) == set("abcd")
    # The first request there does not drive the second one away ...
    for i, home in homes.items():
        loaded = [replace(c, num_placed=int(c.data_plane_id == home)) for c in fleet]
        assert choose(*loaded, digest=f"{i:064x}") == home
    # ... and when a data plane goes, only its own adapters move.
    rest = [c for c in fleet if c.data_plane_id != "a"]
    assert all(
        choose(*rest, digest=f"{i:064x}") == home for i, home in homes.items() if home != "a"
    )


def test_reports_alone_make_a_data_plane_full() -> None:
    assert choose(replace(candidate("a", running=16), num_placed=10_000)) == "a"
    full = candidate("a", running=16, waiting=64)
    assert is_full(full, POLICY)
    assert placed(full) == Refusal(Why.ALL_FULL)


def test_before_its_first_report_a_data_plane_takes_requests() -> None:
    new = replace(candidate("new"), load=Load())
    assert choose(new) == "new"
    assert choose(replace(new, num_placed=100)) == "new", "what was placed there fills nobody"


# By what data planes measured.

MEASURED = Outlook(
    behind_running_s=0.0,
    num_open=8,
    request_s=0.3,
    request_prefill_s=0.05,
    decode_step_s=0.02,
    prefill_step_s=0.01,
    prefill_token_s=0.001,
    max_batch_tokens=512,
    tier_costs=(
        TierCost("host", 0.01, 0.0),
        TierCost("disk", 0.1, 1e-8),
        TierCost("source", 1.0, 1e-7),
    ),
)


def measured(name: str, outlook: Outlook = MEASURED, **fields: object) -> Candidate:
    return replace(candidate(name, **fields), outlook=outlook)  # type: ignore[arg-type]


def queued(wait_s: float, *waits: tuple[int, float], **changes: object) -> Outlook:
    """A data plane with a queue; waits: (priority, seconds)."""
    behind = tuple(ExpectedWait(*each) for each in waits or ((0, wait_s),))
    return msgspec.structs.replace(
        MEASURED, behind_running_s=1.0, num_open=0, waits=behind, **changes
    )


def test_the_shorter_queue_wins_over_residency() -> None:
    here = measured("here", queued(5.0), running=16, waiting=9, tier="pool")
    there = measured("there", queued(2.0), running=16, waiting=9)
    assert choose(here, there) == "there"
    # A wait hides a load that takes no longer.
    choice = placed(there, weights_bytes=1_000_000, num_tokens=100)
    assert isinstance(choice, Choice)
    assert choice.expected_s == pytest.approx(2.0 + 0.01 + 0.02 + 100 * 0.001 + 0.01)
    there = measured("there", queued(0.5), running=16, waiting=9)
    choice = placed(there, weights_bytes=1_000_000)
    assert isinstance(choice, Choice)
    assert choice.expected_s == pytest.approx(1.0 + 0.1 + 0.01 + 0.02 + 0.001 + 0.01)


def test_idle_data_planes_are_chosen_by_tier_and_size() -> None:
    tiers = {"a": "", "b": "disk", "c": "host", "d": "pool"}
    fleet = [measured(name, tier=tier) for name, tier in tiers.items()]
    assert choose(*fleet) == "d"
    assert choose(*fleet[:3]) == "c"
    assert choose(*fleet[:2], weights_bytes=10_000_000) == "b"
    # Tiers that were never measured count no less than nearer ones, and the bonus tells them apart.
    unknown = msgspec.structs.replace(MEASURED, tier_costs=())
    assert choose(measured("a", unknown), measured("b", unknown, tier="disk")) == "b"


def test_one_without_measurements_has_loads_compared() -> None:
    new = candidate("new")
    busy = measured("busy", queued(9.0), running=16, waiting=9, tier="pool")
    assert choose(new, busy, ttft_slo_s=1.0) == "new"
    assert placed(new, ttft_slo_s=1e-6) == Choice(new, None), "nobody is refused on a guess"


def test_refused_when_every_queue_is_too_long() -> None:
    short, long = (
        measured(name, queued(wait_s), running=16, waiting=9)
        for name, wait_s in (("short", 9.0), ("long", 12.0))
    )
    refusal = placed(short, long, digest="", ttft_slo_s=6.0)
    assert isinstance(refusal, Refusal) and refusal.why is Why.OUT_OF_REACH
    assert (refusal.expected_s, refusal.slo_s) == (pytest.approx(9.041), 6.0)
    assert choose(short, long, digest="", ttft_slo_s=8.0) == "short"
    assert choose(short, long, digest="") == "short", "no objective, no refusal"
    # Its first token was delivered elsewhere: it goes on, whatever its objective was.
    assert choose(short, long, digest="", ttft_slo_s=6.0, num_generated=1) == "short"


def test_who_might_make_it_is_let_in() -> None:
    # 24 requests of 0.3 s each: that may come out shorter by about 1.5 s.
    plane = measured("a", queued(7.2), running=16, waiting=24)
    assert choose(plane, digest="", ttft_slo_s=6.0) == "a"
    assert isinstance(placed(plane, digest="", ttft_slo_s=5.5), Refusal)


def test_the_operators_objective_holds_where_a_request_names_none() -> None:
    strict = measured("strict", queued(9.0, ttft_slo_s=6.0), running=16, waiting=9)
    assert isinstance(placed(strict), Refusal)
    assert choose(strict, ttft_slo_s=9.0) == "strict"
    lax = measured("lax", queued(9.0, ttft_slo_s=20.0), running=16, waiting=9)
    assert choose(strict, lax) == "lax"


def test_what_no_queue_is_to_blame_for_is_for_the_data_plane_to_judge() -> None:
    # Alone it would miss its objective by these costs: only there are they put to the test.
    slow = msgspec.structs.replace(MEASURED, prefill_token_s=1.0)
    assert choose(measured("idle", slow), num_tokens=100, ttft_slo_s=6.0) == "idle"
    waiting = msgspec.structs.replace(queued(0.5), prefill_token_s=1.0)
    busy = measured("busy", waiting, running=16, waiting=1)
    assert choose(busy, digest="", num_tokens=100, ttft_slo_s=6.0) == "busy"
    longer = msgspec.structs.replace(queued(9.0), prefill_token_s=1.0)
    busy = measured("busy", longer, running=16, waiting=9)
    assert isinstance(placed(busy, num_tokens=100, ttft_slo_s=6.0), Refusal)


def test_queues_drain_between_reports_and_grow_by_what_was_placed() -> None:
    at_6 = measured("a", queued(8.0), running=16, waiting=9)
    assert isinstance(placed(at_6, digest="", ttft_slo_s=6.0), Refusal)
    older = replace(at_6, last_heartbeat_s=NOW - 1.0)
    assert choose(older, digest="", ttft_slo_s=6.0) == "a"
    assert isinstance(placed(replace(older, num_placed=5), digest="", ttft_slo_s=6.0), Refusal)
    # Places that are open take so many before anybody waits for more than prompts.
    idle = replace(measured("b"), num_placed=8)
    choice = placed(idle, digest="", ttft_slo_s=6.0)
    assert isinstance(choice, Choice) and choice.expected_s == pytest.approx(8 * 0.05 + 0.011)
    assert isinstance(placed(replace(idle, num_placed=40), digest="", ttft_slo_s=6.0), Refusal)


def test_one_waits_behind_its_own_priority_and_higher_ones() -> None:
    outlook = queued(0.0, (5, 2.0), (0, 9.0), (-3, 11.0))
    waits = [outlook.wait_s(priority) for priority in (6, 5, 1, 0, -1, -3, -10)]
    assert waits == [1.0, 2.0, 2.0, 9.0, 9.0, 11.0, 11.0]
    plane = measured("a", outlook, running=16, waiting=9)
    assert isinstance(placed(plane, digest="", ttft_slo_s=6.0), Refusal)
    assert choose(plane, digest="", ttft_slo_s=6.0, priority=1) == "a"


def test_sizes_of_prompts() -> None:
    outlook = msgspec.structs.replace(MEASURED, characters_per_token=4.0)
    assert RequestNeeds(num_tokens=10, num_characters=999).tokens_on(outlook) == 10
    assert RequestNeeds(num_characters=100).tokens_on(outlook) == 25
    assert RequestNeeds(num_characters=100, num_generated=7).tokens_on(outlook) == 32
    assert RequestNeeds(num_characters=100).tokens_on(MEASURED) == 1, "nobody measured characters"
    assert RequestNeeds().tokens_on(outlook) == 1
    # Chunks of 512 each take a step, and cached tokens none.
    half = msgspec.structs.replace(MEASURED, computed_share=0.5)
    for plane, expected_s in (
        (measured("a"), 2 * 0.01 + 1.024),
        (measured("a", half), 0.01 + 0.512),
    ):
        choice = placed(plane, digest="", num_tokens=1024)
        assert isinstance(choice, Choice) and choice.expected_s == pytest.approx(expected_s)


def test_an_old_report_says_nothing_and_a_new_one_may_say_more() -> None:
    assert Outlook.unpack("") == Outlook() and not Outlook().is_measured
    packed = queued(3.0).pack()
    assert Outlook.unpack(packed) == queued(3.0)
    assert Outlook.unpack(packed[:-1] + ',"more"]') == queued(3.0)


# By where the prompt's beginning was sent.

TELLS = msgspec.structs.replace(MEASURED, cached_for_s=60.0)


def holder(
    name: str, *sent: tuple[int, float], outlook: Outlook = TELLS, **fields: object
) -> Candidate:
    plane = measured(name, outlook, **fields)
    return replace(plane, sent=tuple(SentPrefix(*each) for each in sent))


def compared(*candidates: Candidate, **needs: object) -> Choice:
    found = placed(*candidates, digest="", compares_prefixes=True, **needs)
    assert isinstance(found, Choice)
    return found


def test_a_prompt_goes_where_its_beginning_was_computed() -> None:
    for fleet in ((holder("a", (800, 9.0)), holder("b")), (holder("a"), holder("b", (800, 9.0)))):
        choice = compared(*fleet, num_tokens=1000)
        assert choice.candidate.sent
        assert (choice.num_cached, choice.most_cached) == (800, 800)
        assert choice.expected_s == pytest.approx(0.01 + 0.2)
    # Where nothing of it was sent, all of it is computed, whatever others found.
    shares = msgspec.structs.replace(TELLS, computed_share=0.1)
    choice = compared(holder("a", outlook=shares), num_tokens=400)
    assert choice.expected_s == pytest.approx(0.01 + 0.4)
    assert (choice.num_cached, choice.most_cached) == (0, 0)


def test_a_hit_is_worth_what_it_spares_and_no_more() -> None:
    """800 tokens at 1 ms, against a queue of 0.9 s or of 0.5 s."""
    for wait_s, expected in ((0.5, "hit"), (0.9, "idle")):
        waits = msgspec.structs.replace(TELLS, waits=(ExpectedWait(0, wait_s),))
        choice = compared(holder("hit", (800, 1.0), outlook=waits), holder("idle"), num_tokens=1000)
        assert choice.candidate.data_plane_id == expected
        assert choice.most_cached == 800 and choice.num_cached == (800 if expected == "hit" else 0)


def test_everybodys_system_prompt_spreads() -> None:
    """600 tokens of 700 are everybody's; where one was placed, they are from then on."""
    placed_on = dict.fromkeys("abcd", 0)
    sent_to: set[str] = {"a"}
    for _ in range(64):
        fleet = [
            replace(holder(name, *([(600, 0.0)] if name in sent_to else [])), num_placed=count)
            for name, count in placed_on.items()
        ]
        name = compared(*fleet, num_tokens=700).candidate.data_plane_id
        placed_on[name] += 1
        sent_to.add(name)
    assert len(sent_to) == 4
    assert max(placed_on.values()) <= 2 * min(placed_on.values()), placed_on


def test_what_was_evicted_is_not_counted_upon() -> None:
    brief = msgspec.structs.replace(TELLS, cached_for_s=5.0)
    conversation = holder("a", (900, 8.0), (300, 2.0), outlook=brief)
    assert compared(conversation, num_tokens=1000).num_cached == 300, "the system prompt is younger"
    assert compared(holder("a", (900, 8.0)), num_tokens=1000).num_cached == 900
    off = msgspec.structs.replace(TELLS, cached_for_s=0.0)
    assert compared(holder("a", (900, 0.1), outlook=off), num_tokens=1000).num_cached == 0


def test_lengths_in_characters_and_longer_than_the_prompt() -> None:
    by_four = msgspec.structs.replace(TELLS, characters_per_token=4.0)
    hit = holder("a", (800, 1.0), outlook=by_four)
    assert compared(hit, num_characters=1000).num_cached == 200
    assert compared(hit, num_characters=400).num_cached == 100
    assert compared(hit, num_tokens=5).num_cached == 5
    assert compared(holder("a", (800, 1.0)), num_characters=1000).num_cached == 0, "no measure"
    choice = compared(hit, num_characters=800)
    assert choice.expected_s == pytest.approx(0.01 + 0.001), "one token is always computed"


def test_beside_data_planes_that_do_not_tell_the_usual_share_counts() -> None:
    half = msgspec.structs.replace(MEASURED, computed_share=0.5)
    old = measured("old", half)
    mixed = placed(old, holder("new"), digest="", num_tokens=1000, compares_prefixes=True)
    assert isinstance(mixed, Choice)
    assert mixed.candidate.data_plane_id == "old" and mixed.num_cached is None
    assert mixed.expected_s == pytest.approx(0.01 + 0.5)
