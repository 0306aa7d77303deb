"""Properties of the placement policy."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controlplane.fleet.model import Load
from controlplane.placement.placement import (
    Candidate,
    PlacementPolicy,
    Refusal,
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


def choose(*candidates: Candidate, digest: str = DIGEST, **changes: object) -> str:
    arguments = {"base_model": "base", "now_s": NOW, "policy": POLICY, "digest": digest}
    chosen = place(candidates, **{**arguments, **changes})  # type: ignore[arg-type]
    assert isinstance(chosen, Candidate), chosen
    return chosen.data_plane_id


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
    def run(candidates: list[Candidate]) -> Candidate | Refusal:
        return place(
            candidates,
            base_model="base",
            digest=digest,
            excluded=excluded,
            now_s=NOW,
            policy=POLICY,
        )

    chosen = run(fleet)
    serving = [c for c in fleet if c.base_model == "base" and NOW - c.last_heartbeat_s <= 5]
    eligible = [c for c in serving if c.data_plane_id not in excluded]
    not_full = [c for c in eligible if not is_full(c, POLICY)]
    if isinstance(chosen, Refusal):
        assert not not_full
        expected = Refusal.ALL_FULL if eligible else Refusal.ALL_EXCLUDED
        assert chosen is (expected if serving else Refusal.NO_DATA_PLANE)
        return
    assert chosen in not_full
    loads = [load_of(c, POLICY) for c in not_full]
    # Bounded: residency never costs more load than it is worth, and never a free place.
    assert load_of(chosen, POLICY) <= min(loads) + max(POLICY.bonus.values()) + 1e-9
    assert load_of(chosen, POLICY) < 1 or min(loads) >= 1
    if not digest:
        assert load_of(chosen, POLICY) == min(loads)
    shuffled = random.Random(0).sample(fleet, len(fleet))
    assert run(shuffled) == chosen


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
    placed = replace(candidate("a", running=16), num_placed=10_000)
    assert choose(placed) == "a"
    full = candidate("a", running=16, waiting=64)
    assert is_full(full, POLICY)
    assert place([full], base_model="base", digest="", now_s=NOW, policy=POLICY) is Refusal.ALL_FULL


def test_before_its_first_report_a_data_plane_takes_requests() -> None:
    new = replace(candidate("new"), load=Load())
    assert choose(new) == "new"
    assert choose(replace(new, num_placed=100)) == "new", "what was placed there fills nobody"
