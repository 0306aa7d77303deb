from __future__ import annotations

from pathlib import Path

import httpx

from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from controlplane.store import keys
from controlplane.store.embedded import EmbeddedRedis
from tests.controlplane.tenants.quota import admit, limit, refusal
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure, running
from tests.helpers.prometheus import Metrics
from tests.helpers.redis import send
from tests.helpers.waiting import eventually

PREFIX = "chorale_control_plane"


async def test_what_was_decided_and_what_there_is(redis_url: str, tmp_path: Path) -> None:
    async with (
        running(redis_url, adapter_roots=[tmp_path], metrics_port=0) as plane,
        httpx.AsyncClient(timeout=60) as http,
    ):

        async def scrape() -> Metrics:
            answer = await http.get(plane.metrics_url)
            assert answer.status_code == 200
            return Metrics(answer.text)

        before = await scrape()
        assert before(f"{PREFIX}_registered_adapters") == before(f"{PREFIX}_data_planes") == 0
        await failure(plane.admission.Admit(admission_pb.AdmitRequest(model="voice")))
        await plane.join(max_running=4)
        await plane.register("voice", make_adapter_dir(tmp_path / "1", seed=1))
        for _ in range(2):
            await plane.admission.Admit(admission_pb.AdmitRequest(model="voice"))
        await failure(plane.beat("dp-9"))
        pin = fleet_pb.DirectAdapterRequest(name="voice", action=fleet_pb.ADAPTER_ACTION_PIN)
        await plane.fleet.DirectAdapter(pin, metadata=AUTHORIZATION)
        await until_counted(plane)
        seen = await scrape()
    assert seen(f"{PREFIX}_predicts") == 1
    for kind in ("follow", "rate", "warm_up"):
        assert seen(f"{PREFIX}_prediction_precision", kind=kind) == 1
        assert seen(f"{PREFIX}_prediction_bytes_total", kind=kind) == 0
        for outcome in ("made", "hit", "late", "miss"):
            assert seen(f"{PREFIX}_predictions_total", kind=kind, outcome=outcome) == 0
    admissions = f"{PREFIX}_admissions_total"
    assert seen(admissions, outcome="admitted", reason="") == 2
    assert seen(admissions, outcome="refused", reason="MODEL_NOT_FOUND") == 1
    assert seen(f"{PREFIX}_admission_seconds_count") == 3
    assert seen(f"{PREFIX}_admission_seconds_sum") > 0
    assert seen(f"{PREFIX}_heartbeats_total", outcome="OK") == 1
    assert seen(f"{PREFIX}_heartbeats_total", outcome="LEASE_EXPIRED") == 1
    assert seen(f"{PREFIX}_directives_total", action="pin") == 1
    assert seen(f"{PREFIX}_registered_adapters") == 1
    assert seen(f"{PREFIX}_data_planes") == 1


async def test_admissions_by_tenant(redis_url: str) -> None:
    async with running(redis_url, metrics_port=0) as plane, httpx.AsyncClient(timeout=60) as http:
        await limit(plane, "acme", requests_per_minute=1)
        await failure(admit(plane))  # nobody is there
        await plane.join(max_running=4)
        await plane.until_written()  # its charge is given back
        await admit(plane)
        for _ in range(2):
            await refusal(plane)
        await admit(plane, "")
        await failure(admit(plane, "no name"))
        await failure(admit(plane, "nor this", model="@"))  # which is looked at first
        seen = Metrics((await http.get(plane.metrics_url)).text)
    name = f"{PREFIX}_tenant_admissions_total"
    assert seen(name, tenant="acme", outcome="admitted") == 1
    assert seen(name, tenant="acme", outcome="refused") == 1
    assert seen(name, tenant="acme", outcome="over_quota") == 2
    assert seen(name, tenant="default", outcome="admitted") == 1
    assert seen.values("tenant") == {"acme", "default"}
    refused = seen(f"{PREFIX}_admissions_total", outcome="refused", reason="TENANT_QUOTA")
    assert refused == 2


async def until_counted(plane: ControlPlane) -> None:
    async def is_counted() -> bool:
        demand = await plane.fleet.ListDemand(fleet_pb.ListDemandRequest())
        return demand.predicting and bool(demand.adapters)

    await eventually(is_counted)


async def test_predictions_are_told(redis_url: str, redis_server: EmbeddedRedis) -> None:
    counts = {"made": 9, "hits": 4, "late": 2, "misses": 1, "bytes": 77, "recent": 7}
    fields = " ".join(f"{name}:follow {count}" for name, count in counts.items())
    send(redis_server, f"HSET {keys.PREDICTION_SCORES} {fields} recent_hits:follow 4")
    async with (
        running(redis_url, metrics_port=0, prefetch=False) as plane,
        httpx.AsyncClient(timeout=60) as http,
    ):
        seen = Metrics((await http.get(plane.metrics_url)).text)
    for outcome, count in (("made", 9), ("hit", 4), ("late", 2), ("miss", 1)):
        assert seen(f"{PREFIX}_predictions_total", kind="follow", outcome=outcome) == count
    assert seen(f"{PREFIX}_prediction_bytes_total", kind="follow") == 77
    assert seen(f"{PREFIX}_prediction_precision", kind="follow") == (4 + 4) / (7 + 4)
    assert seen(f"{PREFIX}_predicts") == 0


async def test_where_redis_takes_no_writes_all_can_still_be_looked_at(
    redis_url: str, redis_server: EmbeddedRedis
) -> None:
    async with running(redis_url, metrics_port=0) as plane, httpx.AsyncClient(timeout=60) as http:
        await plane.join(max_running=4)
        send(redis_server, f"SADD {keys.DATA_PLANES} one-that-is-gone")
        send(redis_server, "CONFIG SET min-replicas-to-write 1")
        try:
            answer = await http.get(plane.metrics_url)
            assert answer.status_code == 200
            assert Metrics(answer.text)(f"{PREFIX}_data_planes") == 1
            await plane.fleet.ListDemand(fleet_pb.ListDemandRequest())
            assert (await plane.admission.Admit(admission_pb.AdmitRequest())).ticket
        finally:
            send(redis_server, "CONFIG SET min-replicas-to-write 0")


async def test_counters_of_heartbeats_are_listed(redis_url: str) -> None:
    load = fleet_pb.Load(
        num_loading=3,
        num_waiting_pins=2,
        tiers=[
            fleet_pb.TierCounters(
                tier="pool",
                num_adapters=1,
                size_bytes=2**40,
                max_bytes=2**41,
                num_hits=4,
                num_misses=5,
                num_evictions=6,
                num_damaged=9,
            )
        ],
        load_counts=[
            fleet_pb.LoadCount(
                origin="hf",
                outcome="OK",
                num_loads=7,
                size_bytes=8,
                queue_s=0.1,
                read_s=0.2,
                parse_s=0.3,
                build_s=0.4,
            )
        ],
        prefetches=fleet_pb.Prefetches(num_asked=3, late={}),
    )
    async with running(redis_url) as plane:
        await plane.join()
        request = fleet_pb.HeartbeatRequest(data_plane_id="dp-0", incarnation=1, load=load)
        await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)
        listed = await plane.fleet.ListDataPlanes(fleet_pb.ListDataPlanesRequest())
        assert listed.data_planes[0].load == load
        many = fleet_pb.Load(load_counts=[fleet_pb.LoadCount(origin="x" * 500)] * 300)
        request = fleet_pb.HeartbeatRequest(data_plane_id="dp-0", incarnation=1, load=many)
        await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)
        listed = await plane.fleet.ListDataPlanes(fleet_pb.ListDataPlanesRequest())
    kept = listed.data_planes[0].load.load_counts
    assert len(kept) == 128 and len(kept[0].origin) == 64
