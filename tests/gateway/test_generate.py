"""Generations over the gateway's gRPC: what goes down and what comes back."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from chorale import (
    Accepted,
    AsyncClient,
    DeadlineExceededError,
    FailedPreconditionError,
    Finished,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    Tokens,
    UnauthenticatedError,
    UnavailableError,
)
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.recovery import RecoveryLimits
from tests.helpers.fake_data_plane import DRAWN_SEED, FakeDataPlane, story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually


async def test_stream_is_accepted_then_tokens_then_finished(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    events = [e async for e in client.generate("one two", model="pirate", max_tokens=5)]
    assert [type(e) for e in events] == [Accepted, *[Tokens] * 5, Finished]
    accepted, finished = events[0], events[-1]
    assert isinstance(accepted, Accepted) and isinstance(finished, Finished)
    assert (accepted.model, accepted.adapter_version) == ("pirate", 2)
    assert accepted.data_plane_id == "dp0" and accepted.request_id
    assert "".join(e.text for e in events) == text_of(story(DRAWN_SEED, 5))
    assert finished.num_completion_tokens == 5 and finished.finish_reason == "length"
    assert finished.timings.queue_s == 0.25


async def test_request_goes_down_whole_with_a_ticket(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.complete(
        messages=[{"role": "user", "content": "hi"}],
        model="prod",
        tenant="acme",
        request_id="r-1",
        max_tokens=2,
        temperature=0.5,
        stop=["a", "b"],
        stop_token_ids=[3],
        seed=9,
    )
    (sent,) = fleet.planes[0].requests
    assert sent.ticket in fleet.tickets and sent.request_id == "r-1" and sent.tenant == "acme"
    assert sent.chat.messages[0].content == "hi"
    sampling = pb.SamplingParameters(
        max_tokens=2, temperature=0.5, stop=["a", "b"], stop_token_ids=[3], seed=9
    )
    assert sent.sampling == sampling
    (admit,) = fleet.admits
    assert (admit.model, admit.tenant) == ("prod", "acme")


async def test_a_client_s_own_ticket_is_not_used(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.complete("x", ticket=b"forged", max_tokens=1)
    assert fleet.planes[0].requests[0].ticket == b"ticket-0"


async def test_metadata_travels_but_secrets_stop_at_the_control_plane(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    metadata = (("traceparent", "00-1-2-01"), ("authorization", "Bearer s"), ("x-bin", b"\x00\xff"))
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        request = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParameters(max_tokens=1))
        async for _ in InferenceServiceStub(channel).Generate(request, metadata=metadata):
            pass
    below = fleet.planes[0].metadata[0]
    assert below["traceparent"] == "00-1-2-01" and below["x-bin"] == b"\x00\xff"
    assert "authorization" not in below
    assert fleet.metadata[0]["authorization"] == "Bearer s"


async def test_deadline_travels_down_and_ends_the_stream(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.planes[0].delay_s = 0.05
    for timeout_s in (0.4, 4.0, 40.0):  # until there is time to reach a data plane
        with pytest.raises(DeadlineExceededError):
            await client.complete("x", max_tokens=100_000, timeout=timeout_s)
        if fleet.planes[0].time_remaining:
            break
    remaining = fleet.planes[0].time_remaining[0]
    assert remaining is not None and remaining < timeout_s
    await asyncio.wait_for(fleet.planes[0].ended.wait(), 30)


async def test_deadline_holds_during_admission(client: AsyncClient, fleet: FakeFleet) -> None:
    fleet.admit_gate = asyncio.Event()
    with pytest.raises(DeadlineExceededError):
        await client.complete("x", timeout=0.2)
    assert fleet.planes[0].requests == []


@pytest.mark.parametrize("how", ["close", "cancel task", "close channel"])
async def test_going_away_cancels_the_data_plane(
    gateway: RunningGateway, fleet: FakeFleet, how: str
) -> None:
    plane = fleet.planes[0]
    plane.delay_s = 0.01
    client = AsyncClient(gateway.address)
    generation = client.generate("x", max_tokens=100_000)
    assert isinstance(await anext(generation), Accepted)
    assert plane.running == 1
    if how == "close":
        generation.close()
    elif how == "cancel task":
        task = asyncio.create_task(generation.__anext__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
            while True:
                await anext(generation)
    else:
        await client.close()
    await asyncio.wait_for(plane.ended.wait(), 30)
    assert plane.running == 0
    await client.close()


async def test_going_away_during_admission_admits_no_one(
    gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.admit_gate = asyncio.Event()
    generation = client.generate("x")
    task = asyncio.create_task(generation.__anext__())
    await eventually(lambda: fleet.admits)
    generation.close()
    with pytest.raises(StopAsyncIteration):
        await task
    await gateway.until_idle()
    fleet.admit_gate.set()
    await eventually(lambda: fleet.tickets)
    await asyncio.sleep(0.1)
    assert fleet.planes[0].requests == []


async def test_errors_of_admission_pass_unchanged(client: AsyncClient, fleet: FakeFleet) -> None:
    with pytest.raises(NotFoundError) as unknown:
        await client.complete("x", model="nobody")
    assert unknown.value.reason == "MODEL_NOT_FOUND"
    assert unknown.value.metadata == {"model": "nobody", "field": "model"}
    fleet.admit_errors = [
        ResourceExhaustedError("FLEET_FULL", "all full", metadata={"a": "b"}, retry_after_s=2.5)
    ]
    with pytest.raises(ResourceExhaustedError) as full:
        await client.complete("x")
    assert (full.value.reason, full.value.message) == ("FLEET_FULL", "all full")
    assert (full.value.metadata, full.value.retry_after_s) == ({"a": "b"}, 2.5)
    assert len(fleet.admits) == 2


@pytest.mark.parametrize(
    "error",
    [
        FailedPreconditionError("ADAPTER_UNFIT", "module q_proj has another shape"),
        ResourceExhaustedError("QUEUE_FULL", "no room", retry_after_s=0.5),
        InternalError("ENGINE_FAULT", "a fault"),
    ],
)
async def test_refusals_of_a_data_plane_pass_unchanged_and_are_not_tried_elsewhere(
    client: AsyncClient, fleet: FakeFleet, error: ResourceExhaustedError
) -> None:
    fleet.planes[0].error = error
    with pytest.raises(type(error)) as seen:
        await client.complete("x")
    assert (seen.value.reason, seen.value.message) == (error.reason, error.message)
    assert seen.value.retry_after_s == error.retry_after_s
    assert fleet.planes[1].requests == []


async def test_a_fault_in_a_data_plane_is_internal_never_unknown(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    fleet.planes[0].error = RuntimeError("secret detail")
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            async for _ in InferenceServiceStub(channel).Generate(pb.GenerateRequest(prompt="x")):
                pass
    assert seen.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(seen.value)


async def test_a_used_ticket_is_renewed_once(client: AsyncClient, fleet: FakeFleet) -> None:
    fleet.planes[0].errors = [UnauthenticatedError("TICKET_EXPIRED", "late; call Admit again")]
    completion = await client.complete("x", max_tokens=3)
    assert completion.text == text_of(story(DRAWN_SEED, 3))
    assert [r.ticket for r in fleet.planes[0].requests] == [b"ticket-0", b"ticket-1"]

    refusal = UnauthenticatedError("TICKET_FORGED", "forged; call Admit again")
    fleet.planes[0].errors = [refusal, refusal, refusal]
    with pytest.raises(UnauthenticatedError) as seen:
        await client.complete("x")
    assert seen.value.reason == "TICKET_FORGED"
    assert len(fleet.planes[0].requests) == 4


async def test_over_its_limit_the_gateway_refuses_at_once(fleet: FakeFleet) -> None:
    async with (
        running_gateway(fleet, max_concurrent_requests=1) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        fleet.planes[0].delay_s = 0.01
        async with client.generate("x", max_tokens=10_000) as running:
            await anext(running)
            with pytest.raises(ResourceExhaustedError) as full:
                await client.complete("y")
            assert full.value.reason == "GATEWAY_FULL" and full.value.retry_after_s == 1.0
        await gateway.until_idle()
        assert (await client.complete("z", max_tokens=1)).finish_reason == "length"


async def test_without_control_plane_running_streams_go_on_and_new_ones_fail_typed(
    fleet: FakeFleet,
) -> None:
    refused = asyncio.Event()

    async def hold(_: FakeDataPlane, done: int) -> None:
        if done == 5:
            await refused.wait()

    fleet.planes[0].before_token = hold
    async with (
        running_gateway(fleet, recovery=RecoveryLimits(outage_s=0.3)) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        running = client.generate("x", max_tokens=30)
        await anext(running)
        assert fleet.server is not None
        await fleet.server.stop(0)
        with pytest.raises(UnavailableError) as seen:
            await client.complete("y")
        assert seen.value.reason == "CONTROL_PLANE_UNREACHABLE"
        assert seen.value.retry_after_s is not None
        refused.set()
        assert "".join([e.text async for e in running]) == text_of(story(DRAWN_SEED, 30))


async def test_many_streams_at_once_do_not_mix(client: AsyncClient) -> None:
    completions = await asyncio.gather(
        *(client.complete("x", seed=seed, max_tokens=25) for seed in range(40))
    )
    assert [c.text for c in completions] == [text_of(story(seed, 25)) for seed in range(40)]
