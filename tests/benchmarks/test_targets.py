from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from benchmarks.errors import RequestFailed, TargetError
from benchmarks.load.grpc_target import GrpcTarget
from benchmarks.load.openai_target import OpenAITarget
from benchmarks.load.target import Chunk, Target, open_target
from chorale.errors import ResourceExhaustedError
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from tests.helpers.fake_openai import FakeOpenAI, serving
from tests.helpers.scripted_gateway import ScriptedGateway, generation, scripted_gateway


async def chunks(target: Target, adapter: str = "", num_tokens: int = 6) -> list[Chunk]:
    stream: AsyncIterator[Chunk] = target.stream(adapter, [17, 18, 19], num_tokens)
    return [chunk async for chunk in stream]


def scripted(gateway: ScriptedGateway) -> ScriptedGateway:
    base = registry_pb.BaseModel(name="bench", vocab_size=512, num_layers=4)
    gateway.answers["ListBaseModels"] = registry_pb.ListBaseModelsResponse(base_models=[base])
    plane = fleet_pb.DataPlane(data_plane_id="d0", base_model="bench")
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse(data_planes=[plane])
    gateway.answers["Generate"] = generation(["a", "b", "c"])
    return gateway


async def test_openai_describes_itself_by_its_base_model() -> None:
    with serving(FakeOpenAI()) as fake:
        target = OpenAITarget(fake.url)
        info = await target.describe()
        await target.close()
    assert info.base_model == "bench" and info.details == {"num_models": 2}


async def test_openai_streams_token_ids_and_asks_for_exactly_so_many() -> None:
    with serving(FakeOpenAI()) as fake:
        target = OpenAITarget(fake.url, model="bench")
        got = await chunks(target, "pirate")
        await target.close()
    assert got == [Chunk(1)] * 6 + [Chunk(0, done=True)]
    (body,) = fake.requests
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("pirate", [17, 18, 19], 6)
    assert body["stream"] and body["ignore_eos"] and body["return_token_ids"]


async def test_openai_without_token_ids_counts_by_the_usage() -> None:
    with serving(FakeOpenAI(with_token_ids=False)) as fake:
        target = OpenAITarget(fake.url, model="bench", extensions=False)
        got = await chunks(target)
        await target.close()
    assert sum(chunk.num_tokens for chunk in got) == 6  # two of them came without text
    assert got[-1] == Chunk(2, done=True)
    (body,) = fake.requests
    assert not {"ignore_eos", "return_token_ids"} & set(body)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"refuse": 404}, "model_not_found"),
        ({"error": {"message": "lost", "code": "ENGINE_LOST"}}, "ENGINE_LOST"),
        ({"broken_at": 3}, "STREAM_INCOMPLETE"),
    ],
)
async def test_openai_failures_are_told_by_reason(changes: dict[str, object], reason: str) -> None:
    fake = FakeOpenAI()
    for name, value in changes.items():
        setattr(fake, name, value)
    with serving(fake):
        target = OpenAITarget(fake.url, model="bench")
        with pytest.raises(RequestFailed) as caught:
            await chunks(target)
        await target.close()
    assert caught.value.reason == reason


async def test_openai_keeps_a_password_out_of_its_url() -> None:
    target = OpenAITarget("http://user:secret@127.0.0.1:1/v1/")
    assert target.url == "http://127.0.0.1:1/v1"
    with pytest.raises(TargetError, match="does not answer") as caught:
        await target.describe()
    assert caught.value.reason == "NO_OPENAI_API"
    await target.close()


async def test_grpc_streams_tokens_and_the_servers_own_times() -> None:
    with scripted_gateway() as gateway:
        target = GrpcTarget(scripted(gateway).address)
        info = await target.describe()
        got = await chunks(target, "pirate")
        await target.close()
    assert (info.base_model, info.vocab_size) == ("bench", 512)
    assert got == [Chunk(1)] * 3 + [Chunk(0, queue_s=0.5, adapter_load_s=0.0, done=True)]
    request = gateway.requests[-1]
    assert (request.model, list(request.prompt_token_ids.ids)) == ("pirate", [17, 18, 19])
    assert request.sampling.max_tokens == 6 and request.sampling.ignore_eos


async def test_grpc_sends_base_requests_under_the_models_name() -> None:
    with scripted_gateway() as gateway:
        target = GrpcTarget(scripted(gateway).address)
        await target.describe()
        await chunks(target)
        await target.close()
    assert gateway.requests[-1].model == "bench"


async def test_grpc_failures_are_told_by_reason() -> None:
    with scripted_gateway() as gateway:
        scripted(gateway).answers["Generate"] = ResourceExhaustedError("QUEUE_FULL", "4096 wait")
        target = GrpcTarget(gateway.address, model="bench")
        with pytest.raises(RequestFailed, match="4096 wait") as caught:
            await chunks(target)
        await target.close()
    assert caught.value.reason == "QUEUE_FULL"


async def test_grpc_wants_a_model_when_there_are_several() -> None:
    with scripted_gateway() as gateway:
        models = [registry_pb.BaseModel(name=name) for name in ("one", "two")]
        scripted(gateway).answers["ListBaseModels"] = registry_pb.ListBaseModelsResponse(
            base_models=models
        )
        target, named = GrpcTarget(gateway.address), GrpcTarget(gateway.address, model="two")
        with pytest.raises(TargetError, match="one, two"):
            await target.describe()
        assert (await named.describe()).base_model == "two"
        await asyncio.gather(target.close(), named.close())


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1", "grpc://", "ftp://x", "grpc://h:1/v1", "http:///v1"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(TargetError) as caught:
        open_target(url)
    assert caught.value.reason == "TARGET_INVALID"
