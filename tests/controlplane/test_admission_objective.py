"""Admit with an objective: refused at once where the queues leave no time for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import Any

import pytest
from google.protobuf import duration_pb2

from chorale import tickets
from chorale.errors import ResourceExhaustedError
from chorale.v1 import admission_pb2 as pb
from chorale.v1 import fleet_pb2
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.redis import send


def outlook(wait_s: float = 0.0, **changes: Any) -> fleet_pb2.Outlook:
    fields: dict[str, Any] = {
        "behind_running_s": min(wait_s, 1.0),
        "waits": [fleet_pb2.ExpectedWait(priority=0, wait_s=wait_s)] if wait_s else [],
        "num_open": 0 if wait_s else 8,
        "request_s": 0.1,
        "request_prefill_s": 0.01,
        "decode_step_s": 0.02,
        "prefill_step_s": 0.01,
        "prefill_token_s": 0.001,
        "max_batch_tokens": 512,
        "computed_share": 1.0,
    }
    return fleet_pb2.Outlook(**(fields | changes))


async def busy(plane: ControlPlane, name: str = "dp-0", wait_s: float = 0.0, **load: Any) -> None:
    """A report of a data plane with such a queue."""
    fields = {"num_running": 16, "num_waiting": 9, "max_running": 16}
    await plane.beat(name, outlook=outlook(wait_s), **(fields | load))


async def admit(plane: ControlPlane, slo_s: float | None = None, **fields: Any) -> Any:
    ttft_slo = None
    if slo_s is not None:
        ttft_slo = duration_pb2.Duration()
        ttft_slo.FromNanoseconds(int(slo_s * 1e9))
    return await plane.admission.Admit(pb.AdmitRequest(ttft_slo=ttft_slo, **fields))


async def test_refused_at_once_with_what_is_expected_and_when_to_try_again(
    plane: ControlPlane,
) -> None:
    await plane.join("dp-0")
    await plane.join("dp-1")
    await busy(plane, "dp-0", 1000.0)
    await busy(plane, "dp-1", 900.0)
    error = await failure(admit(plane, 875.0, prompt_size=pb.PromptSize(num_tokens=100)))
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "TTFT_SLO_UNREACHABLE"
    assert "; try again later, or allow it more time" in error.message, "over HTTP, too"
    assert error.metadata["ttft_slo_s"] == "875"
    assert error.metadata["base_model"] == "tiny/llama"
    expected_s = float(error.metadata["expected_s"])
    assert 875.0 < expected_s <= 900.0 + 0.01 + 0.02 + 0.1 + 0.01
    assert error.retry_after_s == pytest.approx(expected_s - 875.0, abs=0.01)
    assert (await admit(plane, 1200.0)).data_plane_id == "dp-1"
    assert (await admit(plane)).data_plane_id, "no objective"
    resumed = pb.PromptSize(num_tokens=10, num_generated_tokens=3)
    assert (await admit(plane, 0.1, prompt_size=resumed)).data_plane_id


async def test_what_the_ways_take_is_expected_too(plane: ControlPlane) -> None:
    await plane.join()
    await busy(plane, wait_s=700.0, path_s=100.0)
    assert (await admit(plane, 900.0)).data_plane_id == "dp-0"
    error = await failure(admit(plane, 750.0))
    assert error.reason == "TTFT_SLO_UNREACHABLE"
    assert float(error.metadata["expected_s"]) == pytest.approx(800.0, abs=5.0)
    error = await failure(admit(plane, 900.0, ttft_path_s=150.0))
    assert error.reason == "TTFT_SLO_UNREACHABLE"
    assert float(error.metadata["expected_s"]) == pytest.approx(950.0, abs=5.0)
    assert error.metadata["ttft_slo_s"] == "900", "as it was asked for"
    # Where there is no queue it is the data plane's to judge.
    await busy(plane, num_running=0, num_waiting=0, path_s=100.0)
    assert (await admit(plane, 50.0)).data_plane_id == "dp-0"


async def test_the_operators_objective_comes_with_the_report(plane: ControlPlane) -> None:
    await plane.join()
    await busy(plane, wait_s=1000.0, ttft_slo_s=600.0)
    assert (await failure(admit(plane))).reason == "TTFT_SLO_UNREACHABLE"
    await busy(plane, wait_s=500.0, ttft_slo_s=600.0)
    assert (await failure(admit(plane, ttft_path_s=200.0))).reason == "TTFT_SLO_UNREACHABLE"
    await busy(plane, wait_s=1000.0, ttft_slo_s=600.0)
    assert (await admit(plane, 2000.0)).data_plane_id == "dp-0"
    await busy(plane, wait_s=1000.0)
    assert (await admit(plane)).data_plane_id == "dp-0"


async def test_the_ticket_says_what_is_expected(plane: ControlPlane) -> None:
    keys = {key.key_id: key.key for key in (await plane.join()).ticket_keys}

    async def expected_s(**fields: Any) -> float:
        ticket = (await admit(plane, **fields)).ticket
        claims = tickets.verify(ticket, keys, data_plane_id="dp-0", now=time.time())
        return claims.expected_ttft_s

    assert await expected_s() == 0.0, "nothing was measured"
    idle = {"num_running": 0, "num_waiting": 0, "characters_per_token": 4.0}
    sizes = {
        "num_tokens": (pb.PromptSize(num_tokens=100), 0.11),
        "num_characters": (pb.PromptSize(num_characters=200), 0.06),
        "generated, too": (pb.PromptSize(num_tokens=100, num_generated_tokens=50), 0.16),
    }
    for size, seconds in sizes.values():
        await busy(plane, **idle)
        assert await expected_s(prompt_size=size) == pytest.approx(seconds)


async def test_a_higher_priority_waits_only_behind_its_own(redis_url: str) -> None:
    async with running(redis_url, max_priority=5) as plane:
        await plane.join()
        await busy(plane, wait_s=1000.0)
        assert (await failure(admit(plane, 600.0))).reason == "TTFT_SLO_UNREACHABLE"
        assert (await admit(plane, 600.0, priority=1)).data_plane_id == "dp-0"
    async with running(redis_url) as plane:  # the highest that is honoured is 0
        await busy(plane, wait_s=1000.0)
        assert (await failure(admit(plane, 600.0, priority=1))).reason == "TTFT_SLO_UNREACHABLE"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"priority": 11}, "PRIORITY_OUT_OF_RANGE"),
        ({"priority": -11}, "PRIORITY_OUT_OF_RANGE"),
        ({"slo_s": -1.0}, "TTFT_SLO_OUT_OF_RANGE"),
        ({"slo_s": 90_000.0}, "TTFT_SLO_OUT_OF_RANGE"),
        ({"ttft_path_s": math.nan}, "TTFT_PATH_OUT_OF_RANGE"),
        ({"ttft_path_s": -1.0}, "TTFT_PATH_OUT_OF_RANGE"),
    ],
)
async def test_out_of_range(plane: ControlPlane, fields: dict[str, Any], reason: str) -> None:
    await plane.join(max_running=4)
    error = await failure(admit(plane, **fields))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)


async def test_reports_come_back_as_they_were_sent(plane: ControlPlane) -> None:
    await plane.join()
    parts = {"ttft_slo_s": 6.0, "characters_per_token": 3.5, "path_s": 0.25}
    sent = fleet_pb2.Load(max_running=16, **parts)
    tiers = [fleet_pb2.TierCost(tier="disk", fixed_s=0.1, byte_s=1e-9)]
    sent.outlook.CopyFrom(outlook(3.0, tier_costs=tiers))
    await busy(plane, wait_s=3.0, **parts)
    await plane.beat(max_running=16, **parts, outlook=sent.outlook)
    (listed,) = (await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())).data_planes
    assert listed.load == sent
    # A new incarnation has measured nothing.
    await plane.join(incarnation=2)
    (listed,) = (await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())).data_planes
    assert not listed.load.HasField("outlook")


async def test_numbers_that_are_none_refuse_nobody(plane: ControlPlane) -> None:
    await plane.join()
    strange = outlook(
        behind_running_s=math.nan,
        waits=[fleet_pb2.ExpectedWait(priority=0, wait_s=math.inf)] * 1000,
        request_s=-1.0,
        prefill_token_s=math.inf,
    )
    await plane.beat(num_running=1, max_running=16, ttft_slo_s=math.nan, outlook=strange)
    assert (await admit(plane, 0.5)).data_plane_id == "dp-0"


async def test_a_report_of_an_older_control_plane_has_no_outlook(
    plane: ControlPlane, redis_server: EmbeddedRedis
) -> None:
    await plane.join()
    await busy(plane, wait_s=1000.0)
    assert send(redis_server, "HDEL {chorale}:data_plane:dp-0 outlook") == b":1\r\n"
    assert (await admit(plane, 6.0)).data_plane_id == "dp-0"
    (listed,) = (await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())).data_planes
    assert not listed.load.HasField("outlook") and listed.load.num_waiting == 9


async def test_a_burst_over_two_replicas_hardly_passes_the_objective(redis_url: str) -> None:
    """200 at once on two replicas without a report in between. Each of two data planes has room
    for 37 more that may make the objective, and for 10 more each second since its report."""
    async with running(redis_url) as one, running(redis_url) as two:
        for name in ("dp-0", "dp-1"):
            await one.join(name)
        began_s = time.monotonic()
        for name in ("dp-0", "dp-1"):
            await busy(one, name, 3.0)

        async def outcome(at: int) -> str:
            try:
                return (await admit((one, two)[at % 2], 6.0)).data_plane_id
            except Exception:
                return "refused"

        counts = Counter(await asyncio.gather(*(outcome(at) for at in range(200))))
        room = 75 + 20 * (time.monotonic() - began_s)
        admitted = 200 - counts["refused"]
        print(f"admitted {admitted} where {room:.0f} have room")
        assert 65 <= admitted <= room + 10, "a second's work more at most"
        assert abs(counts["dp-0"] - counts["dp-1"]) <= 10
