"""What the gateway's generations share a call for, and when they do not."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from chorale import Accepted, AsyncClient
from chorale.relay import MAX_EVENTS_UNDER_WAY
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.cli.supervisor.ports import free_port
from tests.helpers.fake_data_plane import DRAWN_SEED, FakeDataPlane, story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_fleet, running_gateway
from tests.helpers.waiting import eventually

# Receive windows that are soon full, so that the gateway has to wait for the reader.
SMALL_WINDOWS = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


async def test_generations_share_one_call(client: AsyncClient, fleet: FakeFleet) -> None:
    done = await asyncio.gather(*(client.complete("x", max_tokens=9) for _ in range(8)))
    assert {one.text for one in done} == {text_of(story(DRAWN_SEED, 9))}
    plane = fleet.planes[0]
    assert len(plane.requests) == 8 and plane.num_calls == 0 and plane.num_relays == 1


async def test_data_plane_that_knows_no_relay_is_served_all_the_same() -> None:
    async with (
        running_fleet(relays=False) as fleet,
        running_gateway(fleet) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        for number in (1, 2):
            done = await client.complete("x", max_tokens=9)
            assert done.text == text_of(story(DRAWN_SEED, 9))
            assert fleet.planes[0].num_calls == number
        assert len(fleet.admits) == 2, "a ticket that was not used is used for Generate"


async def test_metadata_gets_a_call_of_its_own(gateway: RunningGateway, fleet: FakeFleet) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        request = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParameters(max_tokens=1))
        stub: Any = InferenceServiceStub(channel)
        async for _ in stub.Generate(request, metadata=(("traceparent", "00-1-2-01"),)):
            pass
        async for _ in stub.Generate(request):
            pass
    assert fleet.planes[0].num_calls == 1
    assert fleet.planes[0].metadata == [fleet.planes[0].metadata[0], {}]
    assert fleet.planes[0].metadata[0]["traceparent"] == "00-1-2-01"


async def test_long_request_gets_a_call_of_its_own(client: AsyncClient, fleet: FakeFleet) -> None:
    plane = fleet.planes[0]
    for length, num_calls in ((1000, 0), (2_000_000, 1)):
        await client.complete("x" * length, max_tokens=1)
        assert plane.num_calls == num_calls
    assert plane.num_relays == 1


async def test_client_that_does_not_read_holds_back_only_itself(
    gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet
) -> None:
    num_tokens = 3000
    plane = fleet.planes[0]
    made: list[int] = []

    async def count(_: FakeDataPlane, done: int) -> None:
        made.append(done)

    plane.before_token = count
    async with grpc.aio.insecure_channel(gateway.address, options=SMALL_WINDOWS) as channel:
        request = pb.GenerateRequest(
            prompt="x" * 10, sampling=pb.SamplingParameters(max_tokens=num_tokens, logprobs=5)
        )
        stub: Any = InferenceServiceStub(channel)
        slow = stub.Generate(request)
        assert (await slow.read()).HasField("accepted")
        await eventually(lambda: len(made) >= MAX_EVENTS_UNDER_WAY - 1)
        before = -1
        while before != len(made):  # until nothing more of it moves
            before = len(made)
            await asyncio.sleep(0.2)
        assert before < num_tokens / 2, "its data plane waits"
        assert (await client.complete("y", max_tokens=200)).text == text_of(story(DRAWN_SEED, 200))
        tokens: list[int] = []
        while (event := await slow.read()) is not grpc.aio.EOF:
            tokens.extend(event.tokens.token_ids)
        assert tokens == story(DRAWN_SEED, num_tokens), "and it misses nothing"


async def test_stream_that_ends_early_leaves_the_others(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]
    plane.delay_s = 0.005
    leaving = client.generate("x", max_tokens=100_000)
    staying = asyncio.create_task(client.complete("y", max_tokens=60))
    assert isinstance(await anext(leaving), Accepted)
    leaving.close()
    await asyncio.wait_for(plane.ended.wait(), 30)
    assert (await staying).text == text_of(story(DRAWN_SEED, 60))
    await eventually(lambda: plane.running == 0)
    assert plane.num_relays == 1


async def test_data_plane_that_restarts_on_its_address_is_linked_anew(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    await fleet.planes[0].kill()
    await fleet.planes[0].start(free_port("127.0.0.1"))  # which nobody else is given meanwhile
    await client.complete("x", max_tokens=2)
    await fleet.planes[0].kill()
    await client.complete("x", max_tokens=2)
    assert len(fleet.planes[1].requests) == 1
    await fleet.planes[0].start(int(fleet.planes[0].endpoint.rpartition(":")[2]))

    async def served_by_the_first() -> bool:
        done = await client.complete("x", max_tokens=2)
        return done.accepted.data_plane_id == "dp0"

    await eventually(served_by_the_first)
    assert fleet.planes[0].num_relays >= 2 and fleet.planes[0].num_calls == 0
