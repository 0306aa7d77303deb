from __future__ import annotations

import json

from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway, adapter


def test_status(chorale: Chorale, gateway: ScriptedGateway) -> None:
    model = registry_pb.BaseModel(name="base", num_layers=4, vocab_size=512, max_context_tokens=99)
    plane = fleet_pb.DataPlane(
        data_plane_id="dp-0",
        endpoint="127.0.0.1:7",
        base_model="base",
        load=fleet_pb.Load(
            num_running=3,
            num_waiting=5,
            max_running=64,
            num_pages=100,
            prefetches=fleet_pb.Prefetches(num_hits=7, late={"nanos": 500_000_000}),
            num_waiting_pins=9,
            tiers=[
                fleet_pb.TierCounters(
                    tier="host", num_adapters=31, size_bytes=2048, max_bytes=4096, num_hits=41
                )
            ],
            load_counts=[fleet_pb.LoadCount(origin="hf", outcome="OK", num_loads=5, read_s=0.5)],
        ),
        residency=fleet_pb.Residency(pool_digests=["a", "b"], host_digests=["c"]),
    )
    gateway.answers |= {
        "ListBaseModels": registry_pb.ListBaseModelsResponse(base_models=[model]),
        "ListDataPlanes": fleet_pb.ListDataPlanesResponse(data_planes=[plane]),
        "ListAdapters": registry_pb.ListAdaptersResponse(adapters=[adapter("x"), adapter("y")]),
    }
    shown = chorale("status").stdout
    texts = ("base", "512", "dp-0", "3/64", "2/1/0", "2 adapters")
    for text in (*texts, "31", "41", "2.0 KiB", "4.0 KiB", "0.50"):
        assert text in shown
    view = json.loads(chorale("status", "--json").stdout)
    assert view["num_adapters"] == 2
    assert view["base_models"][0]["max_context_tokens"] == 99
    (one,) = view["data_planes"]
    assert (one["num_running"], one["num_waiting"], one["max_running"]) == (3, 5, 64)
    assert (one["prefetches"]["num_hits"], one["prefetches"]["late_s"]) == (7, 0.5)
    assert one["num_waiting_pins"] == 9
    (tier,) = one["tiers"]
    assert (tier["tier"], tier["num_adapters"], tier["num_hits"]) == ("host", 31, 41)
    assert (tier["size_bytes"], tier["max_bytes"], tier["num_evictions"]) == (2048, 4096, 0)
    (count,) = one["load_counts"]
    assert (count["origin"], count["outcome"], count["num_loads"]) == ("hf", "OK", 5)
    assert (count["read_s"], count["build_s"]) == (0.5, 0.0)
    assert (one["num_pool_adapters"], one["num_host_adapters"], one["num_disk_adapters"]) == (
        2,
        1,
        0,
    )


def test_status_of_an_empty_fleet(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers |= {
        "ListBaseModels": registry_pb.ListBaseModelsResponse(),
        "ListDataPlanes": fleet_pb.ListDataPlanesResponse(),
        "ListAdapters": registry_pb.ListAdaptersResponse(),
    }
    shown = chorale("status")
    assert shown.exit_code == 0 and "no live data planes" in shown.stdout
