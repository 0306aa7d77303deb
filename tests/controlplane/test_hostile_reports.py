"""Reports that no sound data plane makes: they harm nobody but who makes them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import duration_pb2

from chorale.status import from_rpc_error
from chorale.v1 import admission_pb2, fleet_pb2
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, running

U32, U64 = 2**32 - 1, 2**64 - 1


@pytest.fixture
async def plane(redis_url: str) -> AsyncIterator[ControlPlane]:
    async with running(redis_url) as made:
        yield made


def lying(amount: float) -> fleet_pb2.Load:
    return fleet_pb2.Load(
        num_running=U32,
        num_waiting=U32,
        max_running=U32,
        num_pages=U32,
        num_available_pages=U32,
        num_generated_tokens=U64,
        prefetches=fleet_pb2.Prefetches(),
        tiers=[
            fleet_pb2.TierCounters(
                tier='disk\n"x"\0é' * 99, num_adapters=U32, size_bytes=U64, max_bytes=U64
            )
        ]
        * 20,
        load_counts=[
            fleet_pb2.LoadCount(
                origin='o\n"' * 99,
                outcome="x",
                num_loads=U64,
                size_bytes=U64,
                queue_s=amount,
                read_s=amount,
                parse_s=amount,
                build_s=amount,
            )
        ]
        * 200,
        outlook=fleet_pb2.Outlook(
            behind_running_s=amount,
            waits=[fleet_pb2.ExpectedWait(priority=-(2**31), wait_s=amount)] * 99,
            num_open=U32,
            request_s=amount,
            request_prefill_s=amount,
            decode_step_s=amount,
            prefill_step_s=amount,
            prefill_token_s=amount,
            max_batch_tokens=1,
            computed_share=amount,
            tier_costs=[fleet_pb2.TierCost(tier="disk", fixed_s=amount, byte_s=amount)] * 99,
            cached_for_s=amount,
        ),
        ttft_slo_s=amount,
        characters_per_token=amount,
        path_s=amount,
    )


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf, -1.0, 1.7e308, 5e-324])
async def test_amounts_that_are_none(plane: ControlPlane, amount: float) -> None:
    await plane.join("liar")
    await plane.join("sound", max_running=8)
    for received in (0, U64):
        await plane.fleet.Heartbeat(
            fleet_pb2.HeartbeatRequest(
                data_plane_id="liar",
                incarnation=1,
                load=lying(amount),
                received_directives=received,
                settlement=fleet_pb2.Settlement(
                    number=U64,
                    unused=[fleet_pb2.TenantTokens(tenant="t\0", num_tokens=-(2**63))],
                ),
            ),
            metadata=AUTHORIZATION,
        )
    listed = await plane.fleet.ListDataPlanes(fleet_pb2.ListDataPlanesRequest())
    assert [each.data_plane_id for each in listed.data_planes] == ["liar", "sound"]
    for slo_s in (0, 1, 80_000):
        for excluded in ([], ["liar"], ["sound"]):
            request = admission_pb2.AdmitRequest(
                model="tiny/llama",
                prompt_size=admission_pb2.PromptSize(num_tokens=1000, num_characters=U32),
                max_tokens=100,
                excluded_data_plane_ids=excluded,
                ttft_slo=duration_pb2.Duration(seconds=slo_s) if slo_s else None,
            )
            await refused_or_admitted(plane, request)


async def refused_or_admitted(plane: ControlPlane, request: admission_pb2.AdmitRequest) -> None:
    try:
        admitted = await plane.admission.Admit(request)
    except grpc.aio.AioRpcError as problem:
        error = from_rpc_error(problem)
        assert error.reason in ("FLEET_FULL", "TTFT_SLO_UNREACHABLE"), error
        assert "sound" in request.excluded_data_plane_ids, error
        assert error.retry_after_s is not None and 0 <= error.retry_after_s < 3600
    else:
        assert admitted.data_plane_id not in request.excluded_data_plane_ids
