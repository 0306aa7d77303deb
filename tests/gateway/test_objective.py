"""The objective for the first token on its way through the gateway."""

from __future__ import annotations

import asyncio

import grpc
import httpx
import pytest

from chorale import AsyncClient, InvalidArgumentError, ResourceExhaustedError, Tokens
from chorale.path_time import PathTime
from chorale.v1 import inference_pb2 as pb
from chorale.v1.admission_pb2 import AdmitRequest
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.objective import FirstToken, Objective, Ways
from tests.gateway.http_errors import COMPLETION, error_of
from tests.helpers.fake_data_plane import DRAWN_SEED, FakeDataPlane, story
from tests.helpers.fake_fleet import FakeFleet, RunningGateway


def left_s(plane: FakeDataPlane) -> list[float]:
    """Of the objectives that reached `plane`; NaN where there was none."""
    return [
        request.ttft_slo.ToNanoseconds() / 1e9 if request.HasField("ttft_slo") else float("nan")
        for request in plane.requests
    ]


async def test_what_is_left_after_admission_goes_down(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.admit_delay_s = 0.2
    await client.complete("x", max_tokens=1, ttft_slo=60.0)
    (left,) = left_s(fleet.planes[0])
    assert 50.0 < left <= 59.8


async def test_none_stays_none(client: AsyncClient, fleet: FakeFleet) -> None:
    await client.complete("x", max_tokens=1)
    assert not fleet.planes[0].requests[0].HasField("ttft_slo")


async def test_over_before_it_is_placed_reaches_no_data_plane(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    for slo_s in (0.05, 1.0, 10.0):  # until there is time to ask for a place
        fleet.admit_delay_s = 2 * slo_s
        with pytest.raises(ResourceExhaustedError) as missed:
            await client.complete("x", max_tokens=1, ttft_slo=slo_s)
        assert missed.value.reason == "TTFT_SLO_MISSED" and missed.value.retry_after_s
        if fleet.admits:
            break
    assert missed.value.metadata["ttft_slo_s"] == f"{slo_s:g}"
    assert float(missed.value.metadata["waited_s"]) >= 2 * slo_s
    assert not any(plane.requests for plane in fleet.planes)


async def test_a_stream_that_moves_after_its_first_token_has_none_any_more(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    arrived = asyncio.Event()

    async def die(plane: FakeDataPlane, done: int) -> None:
        if done == 3:
            await arrived.wait()  # what a server had not sent when it was killed is lost
            await plane.kill()

    fleet.planes[0].before_token = die
    received: list[int] = []
    async for event in client.generate("x", max_tokens=6, ttft_slo=60.0):
        if isinstance(event, Tokens):
            received += event.token_ids
        if len(received) == 3:
            arrived.set()
    assert received == story(DRAWN_SEED, 6)
    assert 0 < left_s(fleet.planes[0])[0] <= 60
    (moved,) = fleet.planes[1].requests
    assert len(moved.generated_token_ids) == 3 and not moved.HasField("ttft_slo")


async def test_one_that_is_lost_before_its_first_token_fails_when_the_time_is_over(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    async def die(plane: FakeDataPlane, done: int) -> None:
        fleet.admit_delay_s = 0.3
        await plane.kill()

    fleet.planes[0].before_token = die
    with pytest.raises(ResourceExhaustedError) as missed:
        await client.complete("x", max_tokens=6, ttft_slo=0.25)
    assert missed.value.reason == "TTFT_SLO_MISSED"
    assert fleet.planes[1].requests == []


async def test_out_of_range_is_refused_before_admission(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await client.complete("x", ttft_slo=-1.0)
    assert refused.value.reason == "TTFT_SLO_OUT_OF_RANGE"
    assert fleet.admits == []


async def test_over_http(gateway: RunningGateway, fleet: FakeFleet) -> None:
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        body = COMPLETION | {"ttft_slo": 60.5, "n": 2, "max_tokens": 1}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        sent = left_s(fleet.planes[0]) + left_s(fleet.planes[1])
        assert len(sent) == 2 and all(30.0 < left <= 60.5 for left in sent)
        for value in (0, -1, 86_401, "1"):
            refused = await http.post("/v1/completions", json=COMPLETION | {"ttft_slo": value})
            assert error_of(refused, 400)["param"] == "ttft_slo"
        fleet.admit_delay_s = 0.1
        late = await http.post("/v1/completions", json=COMPLETION | {"ttft_slo": 0.05})
        assert error_of(late, 429)["code"] == "ttft_slo_missed"
        assert late.headers["retry-after"] == "1"


async def test_admission_hears_how_much_there_is_to_compute(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    """Of each kind of prompt; and where it stands, and how long it may take."""
    chat = [{"role": "user", "content": "four"}, {"role": "assistant", "content": "two"}]
    await client.complete("seven…", max_tokens=1, priority=-2, ttft_slo=60.0)
    await client.complete(prompt_token_ids=[5, 6, 7], max_tokens=1)
    await client.complete(messages=chat, max_tokens=1)
    text, tokens, messages = fleet.admits
    assert (text.prompt_size.num_characters, text.prompt_size.num_tokens) == (6, 0)
    assert text.priority == -2 and 50.0 < text.ttft_slo.ToNanoseconds() / 1e9 <= 60.0
    assert (tokens.prompt_size.num_characters, tokens.prompt_size.num_tokens) == (0, 3)
    assert not tokens.HasField("ttft_slo")
    assert (messages.prompt_size.num_characters, messages.prompt_size.num_tokens) == (7, 0)


async def test_a_refusal_of_admission_is_the_clients(client: AsyncClient, fleet: FakeFleet) -> None:
    facts = {"expected_s": "9.000", "ttft_slo_s": "6"}
    fleet.admit_errors = [
        ResourceExhaustedError(
            "TTFT_SLO_UNREACHABLE", "too long a queue", metadata=facts, retry_after_s=3.0
        )
    ]
    with pytest.raises(ResourceExhaustedError) as refused:
        await client.complete("x", max_tokens=1, ttft_slo=6.0)
    assert (refused.value.reason, refused.value.retry_after_s) == ("TTFT_SLO_UNREACHABLE", 3.0)
    assert refused.value.metadata == facts


async def test_over_http_a_refusal_says_when_to_come_again(
    fleet: FakeFleet, gateway: RunningGateway
) -> None:
    fleet.admit_errors = [
        ResourceExhaustedError("TTFT_SLO_UNREACHABLE", "too long a queue", retry_after_s=2.2)
    ]
    async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
        answer = await http.post("/v1/completions", json={**COMPLETION, "ttft_slo": 6.0})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "3"


async def test_what_goes_on_elsewhere_is_admitted_without_an_objective(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    arrived = asyncio.Event()

    async def die(plane: FakeDataPlane, done: int) -> None:
        if done == 3:
            await arrived.wait()
            await plane.kill()

    fleet.planes[0].before_token = die
    async with client.generate("x", max_tokens=8, ttft_slo=60.0) as events:
        async for event in events:
            if isinstance(event, Tokens):
                arrived.set()
    first, second = fleet.admits
    assert first.HasField("ttft_slo") and not second.HasField("ttft_slo")
    assert first.prompt_size.num_generated_tokens == 0
    assert second.prompt_size.num_generated_tokens > 0


def usual(seconds: float, at_s: float) -> PathTime:
    """Measured so often that the prior hardly counts."""
    path = PathTime()
    for _ in range(2000):
        path.note(seconds, at_s)
    return path


def test_what_the_way_takes_is_not_the_data_planes_to_spend() -> None:
    ways = Ways(admission=usual(0.5, 100.0), stream=usual(2.0, 100.0))
    for request, path_s in ((AdmitRequest(), 2.5), (pb.GenerateRequest(), 2.0)):
        asked = pb.GenerateRequest(ttft_path_s=0.25)
        asked.ttft_slo.FromSeconds(10)
        Objective(asked, ways, 99.0).put_into(request, 100.0, has_begun=False)
        assert request.ttft_slo.ToNanoseconds() / 1e9 == 9.0
        assert request.ttft_path_s == pytest.approx(path_s + 0.25, rel=0.02)
        # Where it goes there may be an objective of its own: that counts from here, too.
        asked.ClearField("ttft_slo")
        Objective(asked, ways, 99.0).put_into(request, 100.0, has_begun=False)
        assert not request.HasField("ttft_slo")
        assert request.ttft_path_s == pytest.approx(path_s + 0.25 + 1.0, rel=0.02)
        Objective(asked, ways, 99.0).put_into(request, 100.0, has_begun=True)
        assert request == type(request)()


def test_a_stream_tells_what_the_data_plane_does_not_count() -> None:
    def told_s(times: tuple[float, ...], first_s: float) -> float:
        way = PathTime()
        first = FirstToken(way, 100.0)
        for each in times:
            first.came(each)
        first.ended(pb.Timings(time_to_first_token_s=first_s), 110.0)
        return way.usual_s(110.0)

    alone = PathTime()
    alone.note(0.75, 110.0)
    assert told_s((102.0, 105.0), 1.25) == alone.usual_s(110.0) == 0.5
    assert told_s((), 1.25) == 0.0, "it had none"
    assert told_s((102.0,), 0.0) == 0.0, "a data plane that does not tell"
    assert told_s((101.0,), 1.25) == 0.0


async def test_first_tokens_are_measured_on_their_way(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    fleet.admit_delay_s = 0.05
    for plane in fleet.planes:
        plane.first_token_s = 1e-6  # so that all of what it takes counts as the way's
    for _ in range(3):
        await client.complete("x", max_tokens=2, ttft_slo=60.0)
    first, *later = [*fleet.planes[0].requests, *fleet.planes[1].requests]
    assert first.ttft_path_s == 0.0 < min(each.ttft_path_s for each in later)
    assert fleet.admits[0].ttft_path_s == 0.0
    assert min(each.ttft_path_s for each in fleet.admits[1:]) >= 0.03, "of asking for a place, too"


@pytest.mark.parametrize("value", [-1.0, float("nan"), 90_000.0])
async def test_a_way_out_of_range_is_refused_before_admission(
    gateway: RunningGateway, fleet: FakeFleet, value: float
) -> None:
    request = pb.GenerateRequest(prompt="x", ttft_path_s=value)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in InferenceServiceStub(channel).Generate(request):
                pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ttft_path_s" in (refused.value.details() or "")
    assert fleet.admits == []
