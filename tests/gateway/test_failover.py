"""Data planes die in the middle of streams: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chorale import (
    Accepted,
    AsyncClient,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    Tokens,
    UnavailableError,
)
from controlplane.gateway.recovery import RecoveryLimits
from tests.helpers.cuttable_link import CuttableLink
from tests.helpers.fake_data_plane import DRAWN_SEED, FakeDataPlane, story, text_of
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_fleet, running_gateway
from tests.helpers.waiting import eventually

NUM_TOKENS = 12
ENDLESS = RecoveryLimits(max_failures=10_000)
DRAINING = UnavailableError("DATA_PLANE_STOPPING", "going away", retry_after_s=1.0)


def dies_after(num_tokens: int, error: Exception | None = None) -> Callable[..., Any]:
    """Raises `error` before that token, or kills the data plane's server."""

    async def before_token(plane: FakeDataPlane, done: int) -> None:
        if done == num_tokens:
            if error is not None:
                raise error
            await eventually(lambda: plane.num_heard == plane.num_said)
            await plane.kill()
            await asyncio.sleep(60)

    return before_token


async def check_whole(client: AsyncClient, **options: Any) -> list[Any]:
    """Streams one request and checks that it is what an undisturbed one gives."""
    options = {"model": "pirate", "max_tokens": NUM_TOKENS} | options
    events = [event async for event in client.generate("x", **options)]
    tokens = story(options.get("seed", DRAWN_SEED), NUM_TOKENS)
    assert [type(e) for e in events].count(Accepted) == 1
    assert [t for e in events if isinstance(e, Tokens) for t in e.token_ids] == tokens
    assert "".join(e.text for e in events) == text_of(tokens)
    assert events[-1].num_completion_tokens == NUM_TOKENS
    return events


@pytest.mark.parametrize("num_tokens", [0, 1, 5, NUM_TOKENS - 1])
@pytest.mark.parametrize("how", ["drains", "dies"])
async def test_stream_goes_on_elsewhere(
    client: AsyncClient, fleet: FakeFleet, how: str, num_tokens: int
) -> None:
    first, second = fleet.planes
    first.before_token = dies_after(num_tokens, DRAINING if how == "drains" else None)
    await check_whole(client)
    (resumed,) = second.requests
    delivered = list(resumed.generated_token_ids)
    assert delivered == story(DRAWN_SEED, len(delivered))
    assert len(delivered) == num_tokens
    assert resumed.sampling.seed == DRAWN_SEED, "drawn by the first one, kept by the second"
    assert resumed.request_id == first.requests[0].request_id != ""
    assert list(fleet.admits[1].excluded_data_plane_ids) == ["dp0"]


async def test_connection_that_is_cut_is_a_lost_data_plane(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    link = CuttableLink(fleet.planes[0].endpoint)
    await link.start()
    fleet.planes[0].endpoint = link.address

    async def cut(plane: FakeDataPlane, done: int) -> None:
        if done == 4:
            await eventually(lambda: plane.num_heard == plane.num_said)
            await link.cut()

    fleet.planes[0].before_token = cut
    await check_whole(client)
    assert len(fleet.planes[1].requests) == 1
    await asyncio.wait_for(fleet.planes[0].ended.wait(), 30)


async def test_data_plane_that_is_gone_before_it_accepts(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    await fleet.planes[0].kill()
    events = await check_whole(client)
    assert events[0].data_plane_id == "dp1"


async def test_version_is_pinned_when_the_name_moves_on(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    async def promote_and_die(plane: FakeDataPlane, done: int) -> None:
        if done == 3:
            fleet.add_adapter("pirate", num_versions=3)
            raise DRAINING

    fleet.planes[0].before_token = promote_and_die
    await check_whole(client)
    assert [admit.model for admit in fleet.admits] == ["pirate", "pirate@2"]


async def test_name_that_came_to_mean_other_content_is_refused(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    async def replace_and_die(plane: FakeDataPlane, done: int) -> None:
        if done == 3:
            fleet.adapters["pirate"].versions[0].digest = "f" * 64
            raise DRAINING

    fleet.planes[0].before_token = replace_and_die
    with pytest.raises(FailedPreconditionError) as seen:
        await check_whole(client)
    assert seen.value.reason == "ADAPTER_CHANGED"
    assert fleet.planes[1].requests == []


async def test_client_s_own_generated_tokens_come_first(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.planes[0].before_token = dies_after(6, DRAINING)
    own = story(DRAWN_SEED, 4)
    completion = await client.complete(
        "x", generated_token_ids=own, max_tokens=NUM_TOKENS, seed=DRAWN_SEED
    )
    assert list(completion.token_ids) == story(DRAWN_SEED, NUM_TOKENS)[4:]
    assert list(fleet.planes[1].requests[0].generated_token_ids) == story(DRAWN_SEED, 6)


async def test_several_losses_in_one_stream() -> None:
    async with (
        running_fleet(4) as fleet,
        running_gateway(fleet) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        for i, plane in enumerate(fleet.planes[:3]):
            plane.before_token = dies_after(2 + 3 * i)
        await check_whole(client)
        assert [len(p.requests) for p in fleet.planes] == [1, 1, 1, 1]
        assert list(fleet.admits[-1].excluded_data_plane_ids) == ["dp0", "dp1", "dp2"]


async def test_request_that_kills_data_planes_is_given_up() -> None:
    async with (
        running_fleet(6) as fleet,
        running_gateway(fleet) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        for plane in fleet.planes:
            plane.before_token = dies_after(1)
        with pytest.raises(UnavailableError):
            await check_whole(client)
        assert sum(len(p.requests) for p in fleet.planes) == 4


async def test_last_data_plane_is_waited_for_while_it_restarts() -> None:
    async with (
        running_fleet(1) as fleet,
        running_gateway(fleet, recovery=RecoveryLimits(max_failures=100)) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        (plane,) = fleet.planes
        restarted = []

        async def die_and_restart(plane: FakeDataPlane, done: int) -> None:
            if done == 5 and not restarted:
                restarted.append(asyncio.create_task(restart()))
                await plane.kill()
                await asyncio.sleep(60)

        async def restart() -> None:
            await asyncio.sleep(0.5)
            await plane.start()

        plane.before_token = die_and_restart
        await check_whole(client)
        assert len(restarted) == 1


async def test_gives_up_within_bounds_when_nothing_comes_back() -> None:
    limits = RecoveryLimits(max_failures=3, first_delay_s=0.01, longest_delay_s=0.05)
    async with (
        running_fleet(1) as fleet,
        running_gateway(fleet, recovery=limits) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        fleet.planes[0].before_token = dies_after(2)
        seen: list[int] = []
        with pytest.raises(UnavailableError) as error:
            async for event in client.generate("x", max_tokens=NUM_TOKENS):
                seen.extend(event.token_ids if isinstance(event, Tokens) else ())
        assert error.value.retry_after_s is not None
        assert seen == story(DRAWN_SEED, 2), "what was delivered stays valid"
        assert len(fleet.admits) <= 1 + 2 * 4


async def test_recovery_ends_with_the_deadline() -> None:
    async with (
        running_fleet(1) as fleet,
        running_gateway(fleet, recovery=ENDLESS) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        fleet.planes[0].before_token = dies_after(2)
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await client.complete("x", timeout=0.5)
        await asks_no_more(gateway, fleet)


async def test_going_away_during_recovery_ends_it() -> None:
    async with running_fleet(1) as fleet, running_gateway(fleet, recovery=ENDLESS) as gateway:
        fleet.planes[0].before_token = dies_after(2)
        async with AsyncClient(gateway.address) as client, client.generate("x") as generation:
            for _ in range(3):
                await anext(generation)
            await eventually(lambda: len(fleet.admits) >= 2)
        await asks_no_more(gateway, fleet)


async def asks_no_more(gateway: RunningGateway, fleet: FakeFleet) -> None:
    await gateway.until_idle()
    num_admits = len(fleet.admits)
    await asyncio.sleep(0.3)
    assert len(fleet.admits) == num_admits


async def test_moving_request_is_not_lost_to_a_full_fleet(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    first, second = fleet.planes

    async def die_when_all_is_full(plane: FakeDataPlane, done: int) -> None:
        if done == 3 and len(plane.requests) == 1:
            fleet.admit_errors.append(ResourceExhaustedError("FULL", "full", retry_after_s=0.01))
            for other in fleet.planes:
                other.errors.append(ResourceExhaustedError("FULL", "full", retry_after_s=0.01))
            raise DRAINING

    first.before_token = die_when_all_is_full
    await check_whole(client)
    assert len(first.requests) + len(second.requests) >= 3


async def test_lies_about_the_end_are_a_loss(client: AsyncClient, fleet: FakeFleet) -> None:
    first = fleet.planes[0]

    async def short(request: Any) -> Any:
        async for response in FakeDataPlane._stream(first, request):
            if response.HasField("finished"):
                return
            yield response

    first._stream = short  # type: ignore[method-assign]
    await check_whole(client)
    assert len(fleet.planes[1].requests) == 1


async def test_a_fault_in_mid_stream_is_not_tried_elsewhere(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.planes[0].before_token = dies_after(2, InternalError("ENGINE_FAULT", "a fault"))
    with pytest.raises(InternalError) as seen:
        await check_whole(client)
    assert seen.value.reason == "ENGINE_FAULT"
    assert fleet.planes[1].requests == []


@asynccontextmanager
async def asking_for(fleet: FakeFleet, **limits: float) -> AsyncIterator[AsyncClient]:
    """Of a gateway with these limits."""
    async with (
        running_gateway(fleet, recovery=RecoveryLimits(**limits)) as gateway,  # type: ignore[arg-type]
        AsyncClient(gateway.address) as client,
    ):
        yield client


async def test_control_plane_that_says_nothing_is_asked_once_more(fleet: FakeFleet) -> None:
    for admit_s in (0.3, 3.0, 20.0):  # in which the second one answers, in a machine's worst hour
        async with asking_for(fleet, admit_s=admit_s) as client:
            fleet.admits.clear()
            fleet.admit_delays_s = [600.0]
            try:
                await check_whole(client)
            except UnavailableError:
                assert len(fleet.admits) == 2 and admit_s < 20
            else:
                break
    assert len(fleet.admits) == 2


async def test_a_private_source_may_take_its_time(fleet: FakeFleet) -> None:
    async with asking_for(fleet, admit_s=0.1, source_check_s=60.0) as client:
        fleet.admit_delays_s = [0.5]
        await check_whole(client, source_token="hf_x")
    assert len(fleet.admits) == 1


async def test_control_plane_that_says_nothing_twice_is_unreachable(fleet: FakeFleet) -> None:
    async with asking_for(fleet, admit_s=0.2, outage_s=0.0) as client:
        fleet.admit_delays_s = [600.0, 600.0]
        with pytest.raises(UnavailableError) as seen:
            await check_whole(client)
    assert seen.value.reason == "CONTROL_PLANE_UNREACHABLE"
    assert seen.value.retry_after_s


async def test_callers_deadline_goes_before_the_wait_for_a_place(fleet: FakeFleet) -> None:
    async with asking_for(fleet, admit_s=600.0) as client:
        fleet.admit_delays_s = [600.0]
        with pytest.raises(DeadlineExceededError):
            await check_whole(client, timeout=0.2)
