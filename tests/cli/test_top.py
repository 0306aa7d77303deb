from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chorale.v1 import fleet_pb2 as fleet_pb
from controlplane.cli.rates import Rate, Rates
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway


def plane(
    at_s: int, tokens: int, hits: int = 0, misses: int = 0, evictions: int = 0, name: str = "dp-0"
) -> fleet_pb.DataPlane:
    return fleet_pb.DataPlane(
        data_plane_id=name,
        load=fleet_pb.Load(
            num_running=3,
            max_running=64,
            num_waiting=5,
            num_pages=100,
            num_available_pages=60,
            num_loading=2,
            num_generated_tokens=tokens,
            tiers=[
                fleet_pb.TierCounters(
                    tier="pool", num_hits=hits, num_misses=misses, num_evictions=evictions
                ),
                fleet_pb.TierCounters(tier="host", num_hits=1000),
            ],
        ),
        residency=fleet_pb.Residency(pool_digests=["a", "b"]),
        last_heartbeat_at={"seconds": at_s},
    )


def test_rates_are_between_two_heartbeats() -> None:
    rates = Rates()
    assert rates.update([plane(10, 100)]) == {}
    assert rates.update([plane(10, 100)]) == {}, "no other heartbeat yet"
    between = {"dp-0": Rate(50.0, 0.75, 0.5)}
    assert rates.update([plane(12, 200, hits=3, misses=1, evictions=1)]) == between
    assert rates.update([plane(12, 200, hits=3, misses=1, evictions=1)]) == between, "as before"
    idle = rates.update([plane(13, 200, hits=3, misses=1, evictions=1)])
    assert idle == {"dp-0": Rate(0.0, None, 0.0)}


def test_an_engine_that_began_again_has_no_rate_until_its_second_heartbeat() -> None:
    rates = Rates()
    rates.update([plane(10, 500), plane(10, 5, name="dp-1")])
    after = rates.update([plane(11, 20), plane(11, 15, name="dp-1")])
    assert set(after) == {"dp-1"}
    assert rates.update([plane(12, 30)]) == {"dp-0": Rate(10.0, None, 0.0)}
    assert rates.update([]) == {}


@pytest.fixture
def looks(gateway: ScriptedGateway) -> Callable[..., None]:
    def script(*planes: list[fleet_pb.DataPlane]) -> None:
        answers = iter(planes)

        def answer(_: Any) -> fleet_pb.ListDataPlanesResponse:
            return fleet_pb.ListDataPlanesResponse(data_planes=next(answers))

        gateway.answers["ListDataPlanes"] = answer

    return script


def test_looks_follow_each_other(chorale: Chorale, looks: Callable[..., None]) -> None:
    looks([plane(10, 100)], [plane(12, 200, hits=3, misses=1)])
    shown = chorale("top", "--count", "2", "--every", "0.1")
    assert shown.exit_code == 0
    first, second = shown.stdout.split("data planes")[1:]
    for text in ("dp-0", "3/64", "40/100 40%"):
        assert text in first and text in second
    assert "50.0" not in first and "50.0" in second and "75%" in second


def test_json_is_a_line_for_each_look(chorale: Chorale, looks: Callable[..., None]) -> None:
    looks([plane(10, 100), plane(9, 7, name="a")], [plane(12, 200)], [])
    shown = chorale("top", "--count", "3", "--every", "0.1", "--json")
    first, second, third = (json.loads(line)["data_planes"] for line in shown.stdout.splitlines())
    assert [each["data_plane_id"] for each in first] == ["a", "dp-0"]
    assert first[1]["tokens_per_s"] is None and second[0]["tokens_per_s"] == 50.0
    assert (second[0]["num_used_pages"], second[0]["num_pool_adapters"]) == (40, 2)
    assert third == []


def test_a_gateway_that_is_gone_ends_it(chorale: Chorale, gateway: ScriptedGateway) -> None:
    assert chorale("top", env={"CHORALE_ADDRESS": "127.0.0.1:1"}).exit_code == 5
