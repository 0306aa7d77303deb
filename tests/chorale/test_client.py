"""Both clients against a gateway."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from chorale import (
    Accepted,
    AlreadyExistsError,
    AsyncClient,
    ChoraleError,
    Client,
    Completion,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from chorale.events import completion_of, event_of
from chorale.v1 import inference_pb2 as pb
from tests.helpers.fake_data_plane import story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway

T = TypeVar("T")


async def blocking(gateway: RunningGateway, use: Callable[[Client], T]) -> T:
    """Runs `use` in a thread, as the gateway needs this one."""

    def run() -> T:
        with Client(gateway.address, tenant="acme") as client:
            return use(client)

    return await asyncio.to_thread(run)


def check(completion: Completion) -> None:
    assert completion.text == text_of(story(3, 4))
    assert list(completion.token_ids) == story(3, 4)
    assert completion.finish_reason == "length" and completion.finished.num_completion_tokens == 4
    assert [p.chosen.token_id for p in completion.logprobs] == story(3, 4)
    assert [len(p.top) for p in completion.logprobs] == [2] * 4
    assert completion.accepted.model == "pirate" and completion.accepted.seed == 3


OPTIONS: dict[str, Any] = {"model": "pirate", "seed": 3, "max_tokens": 4, "logprobs": 2}


async def test_complete(gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet) -> None:
    check(await client.complete("x", **OPTIONS))
    check(await blocking(gateway, lambda c: c.complete("x", **OPTIONS)))
    assert [r.tenant for r in fleet.planes[0].requests] == ["", "acme"]


async def test_stream_prints_without_distinction(gateway: RunningGateway) -> None:
    def use(client: Client) -> str:
        return "".join(event.text for event in client.generate("x", **OPTIONS))

    assert await blocking(gateway, use) == text_of(story(3, 4))


async def test_closing_a_blocking_stream_cancels_it(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    plane = fleet.planes[0]
    plane.delay_s = 30.0

    def use(client: Client) -> list[Any]:
        generation = client.generate("x", max_tokens=1000)
        assert isinstance(next(generation), Accepted)
        threading.Timer(0.2, generation.close).start()
        return list(generation)

    assert await blocking(gateway, use) == []
    await asyncio.wait_for(plane.ended.wait(), 30)


async def test_registry(gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet) -> None:
    made = await client.adapters.register("poet", "/a/poet", labels={"team": "x"})
    assert made.created and made.version.version == 1
    with pytest.raises(AlreadyExistsError):
        await client.adapters.register("poet", "/a/poet", must_be_new=True)
    assert (await client.adapters.get("poet")).resolved_version == 1
    assert (await client.adapters.promote("pirate", 1)).current_version == 1
    assert (await client.adapters.promote("pirate", 2)).current_version == 2
    assert (await client.adapters.rollback("pirate")).current_version == 1
    assert (await client.adapters.set_alias("canary", "poet", version=1)).version == 1
    assert (await client.adapters.get("canary")).adapter.name == "poet"
    targets = {"pirate@1": 95, "poet": 5}
    shared = await client.adapters.set_alias("canary", targets=targets)
    assert [each.weight for each in shared.targets] == [95, 5]
    with pytest.raises(InvalidArgumentError):
        await client.adapters.set_alias("canary", "poet", targets=targets)
    await client.adapters.remove_alias("canary")
    assert (await client.adapters.verify("poet")).matches
    await client.adapters.remove("poet")
    with pytest.raises(NotFoundError):
        await client.adapters.get("poet")


async def test_blocking_registry(gateway: RunningGateway, fleet: FakeFleet) -> None:
    def use(client: Client) -> None:
        assert client.adapters.register("poet", "/a/poet").adapter.name == "poet"
        with pytest.raises(AlreadyExistsError):
            client.adapters.register("poet", "/a/poet", must_be_new=True)
        assert client.adapters.get("poet").resolved_version == 1
        assert client.adapters.promote("pirate", 2).current_version == 2
        assert client.adapters.rollback("pirate").current_version == 1
        assert client.adapters.set_alias("canary", "poet").adapter == "poet"
        client.adapters.remove_alias("canary")
        assert client.adapters.verify("poet").matches
        client.adapters.remove("poet")
        assert [p.data_plane_id for p in client.data_planes()] == ["dp0", "dp1"]
        assert client.base_models()[0].name == "base"
        assert client.admit("prod").adapter_version == 1
        with pytest.raises(InvalidArgumentError) as seen:
            client.adapters.register("bad", "relative")
        assert seen.value.reason == "SOURCE_INVALID"
        assert seen.value.metadata == {"field": "source"}

    await blocking(gateway, use)


async def test_list_goes_through_all_pages(
    gateway: RunningGateway, client: AsyncClient, fleet: FakeFleet
) -> None:
    for i in range(2100):
        fleet.add_adapter(f"a{i:04}")
    names = [adapter.name async for adapter in client.adapters.list()]
    assert names == sorted(fleet.adapters)
    assert await blocking(gateway, lambda c: [a.name for a in c.adapters.list()]) == names


async def test_errors_are_chorale_errors_and_streams_fail_while_iterated(
    gateway: RunningGateway, client: AsyncClient
) -> None:
    generation = client.generate("x", model="nobody")
    with pytest.raises(NotFoundError):
        await anext(generation)

    def use(client: Client) -> type[ChoraleError]:
        stream: Iterator[Any] = client.generate("x", model="nobody")
        with pytest.raises(ChoraleError) as seen:
            next(stream)
        return type(seen.value)

    assert await blocking(gateway, use) is NotFoundError


async def test_nobody_at_the_address() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await client.base_models()


def test_a_stream_that_breaks_off_is_not_a_completion() -> None:
    accepted = event_of(pb.GenerateResponse(accepted=pb.Accepted(model="m")))
    assert accepted is not None
    with pytest.raises(InternalError, match="0 tokens"):
        completion_of([accepted])


def test_events_of_later_versions_are_skipped() -> None:
    assert event_of(pb.GenerateResponse()) is None


def test_what_stopped_a_generation() -> None:
    stop_string = event_of(pb.GenerateResponse(finished=pb.Finished(stop_string="END")))
    stop_token = event_of(pb.GenerateResponse(finished=pb.Finished(stop_token_id=0)))
    assert stop_string is not None and stop_token is not None
    assert (stop_string.stop_string, stop_string.stop_token_id) == ("END", None)  # type: ignore[union-attr]
    assert (stop_token.stop_string, stop_token.stop_token_id) == (None, 0)  # type: ignore[union-attr]


def test_the_prompt_s_tokens_are_told() -> None:
    accepted = event_of(pb.GenerateResponse(accepted=pb.Accepted(prompt_token_ids=[3, 1])))
    assert isinstance(accepted, Accepted) and accepted.prompt_token_ids == (3, 1)
