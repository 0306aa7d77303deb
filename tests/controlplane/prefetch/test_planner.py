"""What is brought where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from controlplane.fleet.counters import Counters, LoadCount, TierCounters
from controlplane.fleet.model import Load
from controlplane.placement.expectation import RequestNeeds
from controlplane.placement.placement import Candidate, Choice, PlacementPolicy, affinity, place
from controlplane.prefetch.costs import load_s
from controlplane.prefetch.model import Follow, Kind, Open, Plane, Score, Snapshot, Wanted
from controlplane.prefetch.planner import plan
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.restraint import allowance, is_drawn, precision
from tests.helpers.demand import BASE, SIZE, digest_of, identity_of

POLICY = PrefetchPolicy(budget_bytes_per_s=10 * SIZE)
OFTEN = 0.1  # requests per second: surely one in a minute


def wanted(name: str, rate: float = 0.0, **fields: Any) -> Wanted:
    return Wanted(
        **{
            "identity": identity_of(name),
            "digest": digest_of(name),
            "base_model": BASE,
            "name": f"{name}@1",
            "source": f"file:///{name}",
            "size_bytes": SIZE,
            "rate": rate,
            **fields,
        }
    )


def plane(name: str = "dp-0", *, max_bytes: int = 100 * SIZE, **fields: Any) -> Plane:
    """held: by adapter's name."""
    held: Mapping[str, str] = fields.pop("held", {})
    tiers = [TierCounters(tier, 0, 0, max_bytes, 0, 0, 0) for tier in ("pool", "host")]
    return Plane(
        **{
            "data_plane_id": name,
            "base_model": BASE,
            "load": Load(max_running=8),
            "counters": Counters(tiers=tiers),
            "held": {identity_of(each): tier for each, tier in held.items()},
            **fields,
        }
    )


def snapshot(
    adapters: Iterable[Wanted], planes: Iterable[Plane], follows: Iterable[Follow] = (), **more: Any
) -> Snapshot:
    known = {each.identity: each for each in adapters}
    total = sum(each.rate for each in known.values())
    fields: dict[str, Any] = {"total_rate": {BASE: total}, **more}
    return Snapshot(1000.0, known, list(follows), list(planes), **fields)


def follow(name: str, share: float = 0.9, num_visits: float = 20.0) -> Follow:
    return Follow(identity_of(name), share, num_visits)


def asked(seen: Snapshot, policy: PrefetchPolicy = POLICY) -> set[tuple[str, str, str, str]]:
    """Data plane, adapter, kind, tier."""
    return {
        (ask.data_plane_id, ask.wanted.name.removesuffix("@1"), ask.kind, ask.tier)
        for ask in plan(seen, policy).asks
    }


def test_what_follows_is_brought_where_it_would_be_placed() -> None:
    planes = [plane(f"dp-{index}") for index in range(4)]
    for name in ("a", "b", "c"):
        home = min(planes, key=lambda each: affinity(digest_of(name), each.data_plane_id))
        seen = snapshot([wanted(name)], planes, [follow(name)])
        assert asked(seen) == {(home.data_plane_id, name, "follow", "pool")}
        candidates = [
            Candidate(each.data_plane_id, "", BASE, each.load, 0, "", 0.0) for each in planes
        ]
        chosen = place(
            candidates,
            RequestNeeds(digest=digest_of(name)),
            base_model=BASE,
            now_s=0.0,
            policy=PlacementPolicy(),
        )
        assert isinstance(chosen, Choice)
        assert chosen.candidate.data_plane_id == home.data_plane_id, (
            "placement sends the request there"
        )


def test_what_is_more_likely_goes_nearer_and_what_is_not_likely_nowhere() -> None:
    def tier(share: float, num_visits: float = 20.0) -> set[str]:
        seen = snapshot([wanted("a")], [plane()], [follow("a", share, num_visits)])
        return {each[3] for each in asked(seen)}

    assert tier(0.95) == {"pool"}
    assert tier(0.6) == {"host"}
    assert tier(0.3) == set()
    assert tier(1.0, 1.0) == set(), "once is not often"
    assert tier(1.0, 3.0) == {"host"}


def test_what_is_there_is_not_brought() -> None:
    one, other = plane("dp-0"), plane("dp-1")
    for follows, expected in (([], set()), ([follow("a")], {("dp-1", "a", "follow", "pool")})):
        held = [one, replace(other, held={identity_of("a"): "host"})]
        assert asked(snapshot([wanted("a", OFTEN)], held, follows)) == expected
    held = [one, replace(other, held={identity_of("a"): "pool"})]
    assert asked(snapshot([wanted("a", OFTEN)], held, [follow("a")])) == set()


def test_a_busy_holder_gets_help_and_so_does_a_hot_adapter() -> None:
    idle, busy = plane("dp-0"), plane("dp-1", held={"a": "pool"}, load=Load(8, 3, 8))
    assert asked(snapshot([wanted("a", OFTEN)], [idle, busy])) == {("dp-0", "a", "rate", "host")}
    half = [
        plane("dp-0", held={"a": "pool"}, load=Load(6, 0, 8)),
        plane("dp-1", load=Load(1, 0, 8)),
        plane("dp-2", load=Load(1, 0, 8)),
    ]
    # All of what the three do is for it: 8 requests, where one data plane is to have 4 of them.
    (second,) = asked(snapshot([wanted("a", OFTEN)], half))
    assert second[1:] == ("a", "rate", "host")
    shared = snapshot([wanted("a", OFTEN)], half, total_rate={BASE: 10 * OFTEN})
    assert asked(shared) == set(), "a tenth of them is"


def test_a_new_data_plane_is_warmed_up() -> None:
    # Too rare to be brought for its rate within a minute, often enough within five.
    rare = 0.01
    assert asked(snapshot([wanted("a", rare)], [plane(age_s=600.0)])) == set()
    assert asked(snapshot([wanted("a", rare)], [plane()])) == set()
    new = plane(age_s=3.0)
    assert asked(snapshot([wanted("a", rare)], [new])) == {("dp-0", "a", "warm_up", "host")}
    idle_holder = plane("dp-1", held={"a": "host"})
    assert asked(snapshot([wanted("a", rare)], [new, idle_holder])) == set(), "it has no need"
    busy_holder = replace(idle_holder, load=Load(8, 0, 8))
    seen = snapshot([wanted("a", rare)], [new, busy_holder], total_rate={BASE: 1.0})
    assert asked(seen) == {("dp-0", "a", "warm_up", "host")}
    other_base = replace(new, base_model="other")
    assert asked(snapshot([wanted("a", rare)], [other_base])) == set()


def test_nothing_is_asked_for_that_cannot_or_need_not_be_brought() -> None:
    assert asked(snapshot([wanted("a", OFTEN)], [plane()])) == {("dp-0", "a", "rate", "host")}
    pinned = snapshot([wanted("a", OFTEN, pinned=True)], [plane()])
    assert asked(pinned) == set()
    private = wanted("a", OFTEN, private=True)
    assert asked(snapshot([private], [plane()])) == set(), "nobody's token opens its source"
    assert len(asked(snapshot([private], [plane(held={"a": "disk"})]))) == 1
    for state in ("open", "hit", "held_off"):
        known = Open("dp-0", identity_of("a"), state, "host", SIZE)
        assert asked(snapshot([wanted("a", OFTEN)], [plane()], open=[known])) == set(), state
    silent = plane(max_bytes=0)
    assert asked(snapshot([wanted("a", OFTEN)], [silent])) == set(), "it did not tell its memory"
    busy = plane(counters=replace_loading(plane().counters, POLICY.max_loading))
    assert asked(snapshot([wanted("a", OFTEN)], [busy])) == set()


def replace_loading(counters: Counters, num_loading: int) -> Counters:
    return Counters(num_loading=num_loading, tiers=counters.tiers)


def test_budget_and_share_of_the_tier_bound_what_is_asked_for() -> None:
    many = [wanted(f"a{index}", OFTEN) for index in range(40)]
    made = plan(snapshot(many, [plane()]), POLICY)
    assert len(made.asks) == 10 and made.debts == {"dp-0": 10 * SIZE}
    in_debt = plane(debt_bytes=8.0 * SIZE)
    assert len(plan(snapshot(many, [in_debt]), POLICY).asks) == 2
    rich = PrefetchPolicy(budget_bytes_per_s=10**9, max_asks=100)
    assert len(plan(snapshot(many, [plane()]), rich).asks) == 20, "a fifth of the tier"
    before = [Open("dp-0", identity_of("x"), "open", "pool", 15 * SIZE)]
    assert len(plan(snapshot(many, [plane()], open=before), rich).asks) == 5
    assert len(plan(snapshot(many, [plane()]), replace(rich, max_asks=7)).asks) == 7
    # More than a second's budget: it goes when nothing is owed, and the next ones wait.
    large = [wanted("large", OFTEN, size_bytes=15 * SIZE), wanted("other", OFTEN / 9)]
    poor = PrefetchPolicy(budget_bytes_per_s=SIZE)
    assert plan(snapshot(large[:1], [plane()]), poor).debts == {"dp-0": 15 * SIZE}
    assert not plan(snapshot(large, [plane(debt_bytes=1.0)]), poor).asks


def test_what_a_request_brings_is_not_brought_twice() -> None:
    fresh = wanted("a", OFTEN, idle_s=1.0)
    assert asked(snapshot([fresh], [plane(age_s=1.0)])) == set()
    assert len(asked(snapshot([replace(fresh, idle_s=9.0)], [plane()]))) == 1
    busy = plane("dp-1", held={"a": "host"}, load=Load(8, 0, 8))
    assert len(asked(snapshot([fresh], [plane(), busy]))) == 1, "a second copy"


def test_the_most_valuable_goes_first() -> None:
    one = PrefetchPolicy(budget_bytes_per_s=SIZE)
    seen = snapshot([wanted("a", 0.02), wanted("b", OFTEN)], [plane()])
    assert asked(seen, one) == {("dp-0", "b", "rate", "host")}
    # From disk it would be there soon anyway.
    seen = snapshot([wanted("a", 0.05), wanted("b", 0.06)], [plane(held={"b": "disk"})])
    assert asked(seen, one) == {("dp-0", "a", "rate", "host")}


def test_only_what_fits_is_brought_for_its_rate() -> None:
    hot = [wanted(f"hot{index}", 1.0) for index in range(80)]
    there = plane(held={f"hot{index}": "host" for index in range(80)})
    assert asked(snapshot([*hot, wanted("a", OFTEN)], [there])) == set()
    fewer = [*hot[:79], wanted("a", OFTEN)]
    assert asked(snapshot(fewer, [there])) == {("dp-0", "a", "rate", "host")}


def test_kinds_that_are_wrong_are_asked_less_but_not_never() -> None:
    good, bad = Score(recent=50, recent_hits=40), Score(recent=50, recent_hits=0)
    assert precision(Score()) == 1 and allowance(good, POLICY) == 1
    assert precision(bad) < POLICY.min_precision
    assert POLICY.explore <= allowance(bad, POLICY) < 0.2
    awful = Score(recent=1e6, recent_hits=0)
    assert allowance(awful, POLICY) == POLICY.explore
    many = [wanted(f"a{index}", OFTEN) for index in range(400)]
    rich = PrefetchPolicy(budget_bytes_per_s=10**9, max_asks=1000)
    kind: Kind = "rate"

    def count(score: Score) -> int:
        room = plane(max_bytes=10**9)
        return len(asked(snapshot(many, [room], scores={kind: score}), rich))

    assert count(good) == 400 and 0 < count(awful) < 60
    drawn = [is_drawn(0.25, "rate", "dp-0", str(index), 7) for index in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    assert is_drawn(0.25, "rate", "dp-0", "3", 7) == drawn[3], "the same all through a period"


def test_how_long_what_follows_may_take() -> None:
    assert POLICY.horizon_of("follow", None) == POLICY.horizon_s["follow"]
    assert POLICY.horizon_of("follow", 8.0) == 24
    assert POLICY.horizon_of("follow", 0.1) == POLICY.min_follow_s
    assert POLICY.horizon_of("follow", 1e6) == POLICY.horizon_s["follow"]
    assert POLICY.horizon_of("rate", 8.0) == POLICY.horizon_s["rate"]


def test_costs_are_those_that_were_measured() -> None:
    def count(origin: str, outcome: str, seconds: float) -> LoadCount:
        return LoadCount(origin, outcome, 2, 2000, 9.0, seconds, 0.0, 0.0)

    counters = Counters(load_counts=[count("hf", "OK", 4.0), count("hf", "CANCELLED", 99.0)])
    assert load_s(counters, "", "hf://org/name", 500) == pytest.approx(1.0)
    assert load_s(counters, "pool", "hf://org/name", 500) == 0
    nominal = [load_s(counters, held, "s3://x", 10**8) for held in ("", "disk", "host")]
    assert nominal == sorted(nominal, reverse=True) and nominal[-1] > 0
