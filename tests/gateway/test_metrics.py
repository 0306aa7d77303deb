from __future__ import annotations

import asyncio

import httpx
import pytest

from chorale import AsyncClient, NotFoundError
from chorale.v1 import fleet_pb2 as fleet_pb
from tests.gateway.test_failover import dies_after
from tests.helpers.fake_fleet import FakeFleet, RunningGateway


async def test_generations_over_grpc_and_http(client: AsyncClient, gateway: RunningGateway) -> None:
    await client.complete("x", model="pirate", max_tokens=3)
    async with httpx.AsyncClient(timeout=60) as http:
        body = {"model": "pirate", "prompt": "x", "max_tokens": 2, "n": 2}
        answer = await http.post(f"{gateway.http_url}/v1/completions", json=body)
        assert answer.status_code == 200
    with pytest.raises(NotFoundError):
        await client.complete("x", model="nobody")
    seen = await gateway.metrics()
    prefix = "chorale_gateway"
    assert seen(f"{prefix}_requests_total", outcome="ok", reason="") == 3
    assert seen(f"{prefix}_requests_total", outcome="error", reason="MODEL_NOT_FOUND") == 1
    assert seen(f"{prefix}_model_requests_total", model="pirate", version="2", outcome="ok") == 3
    assert seen(f"{prefix}_model_tokens_total", model="pirate", version="2", kind="completion") == 7
    assert seen(f"{prefix}_time_to_first_token_seconds_count") == 3
    assert seen(f"{prefix}_inter_token_seconds_count") == 4
    assert seen(f"{prefix}_queue_seconds_sum") == 0.75
    assert seen("process_resident_memory_bytes") > 0
    assert "nobody" not in seen.values("model")


async def test_running_cancelled_and_lost(
    client: AsyncClient, fleet: FakeFleet, gateway: RunningGateway
) -> None:
    fleet.planes[0].before_token = dies_after(2)
    await client.complete("x", model="pirate", max_tokens=4)
    seen = await gateway.metrics()
    assert seen("chorale_gateway_lost_streams_total") == 1
    assert (
        seen("chorale_gateway_model_tokens_total", model="pirate", version="2", kind="completion")
        == 4
    )
    fleet.planes[1].delay_s = 0.01
    async with client.generate("x", max_tokens=100_000) as generation:
        await anext(aiter(generation))
        assert (await gateway.metrics())("chorale_gateway_requests_running") == 1
    await gateway.until_idle()
    seen = await gateway.metrics()
    assert seen("chorale_gateway_requests_total", outcome="cancelled", reason="") == 1


async def test_the_fleet(
    fleet: FakeFleet, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.gateway.metrics._TIMEOUT_S", 60.0)
    monkeypatch.setattr("controlplane.gateway.metrics._FRESH_S", 3600.0)
    load = fleet_pb.Load(
        num_running=3,
        num_waiting=4,
        num_generated_tokens=99,
        num_loading=2,
        num_waiting_pins=1,
        tiers=[fleet_pb.TierCounters(tier="host", size_bytes=7, max_bytes=8, num_hits=5)],
        prefetches=fleet_pb.Prefetches(num_asked=9, num_hits=6, late={"nanos": 500_000_000}),
        load_counts=[
            fleet_pb.LoadCount(origin="hf", outcome="OK", num_loads=2, size_bytes=5, read_s=0.5),
            fleet_pb.LoadCount(origin="hf", outcome="SOURCE_TIMEOUT", num_loads=1),
        ],
    )
    fleet.listed = [
        fleet_pb.DataPlane(data_plane_id="dp0", load=load),
        fleet_pb.DataPlane(data_plane_id="dp1"),
    ]
    seen, *_ = await asyncio.gather(*(gateway.metrics() for _ in range(6)))
    assert fleet.num_listings == 1, "not asked again while it is fresh, however many scrape"
    assert fleet.num_residencies_listed == 0, "there may be more than an answer holds"
    plane = {"data_plane": "dp0"}
    assert seen("chorale_fleet_up") == 1
    assert seen("chorale_fleet_data_planes") == 2
    assert seen("chorale_registry_adapters") == 1
    assert seen("chorale_fleet_sequences_running", plane) == 3
    assert seen("chorale_fleet_sequences_waiting", plane) == 4
    assert seen("chorale_fleet_adapters_loading", plane) == 2
    assert seen("chorale_fleet_pins_waiting", plane) == 1
    assert seen("chorale_fleet_generated_tokens_total", plane) == 99
    assert seen("chorale_fleet_tier_bytes", plane, tier="host") == 7
    assert seen("chorale_fleet_tier_max_bytes", plane, tier="host") == 8
    assert seen("chorale_fleet_tier_hits_total", plane, tier="host") == 5
    loads = "chorale_fleet_adapter_loads_total"
    assert seen(loads, plane, origin="hf", outcome="OK") == 2
    assert seen(loads, plane, origin="hf", outcome="SOURCE_TIMEOUT") == 1
    seconds = "chorale_fleet_adapter_load_seconds_total"
    assert seen(seconds, plane, origin="hf", part="read") == 0.5
    assert seen("chorale_fleet_prefetches_total", plane, what="asked") == 9
    assert seen("chorale_fleet_prefetch_late_seconds_total", plane) == 0.5


async def test_without_a_control_plane(fleet: FakeFleet, gateway: RunningGateway) -> None:
    assert fleet.server is not None
    await fleet.server.stop(0)
    seen = await gateway.metrics()
    assert ("chorale_fleet_up", frozenset()) in seen.samples and seen("chorale_fleet_up") == 0
    assert "chorale_registry_adapters" not in seen.names()
    assert "chorale_gateway_requests_running" in seen.names()
