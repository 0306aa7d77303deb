"""HTTP as hostile or careless clients speak it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.gateway.http_errors import COMPLETION, error_of
from tests.helpers.fake_data_plane import DRAWN_SEED, story
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually


async def test_health_follows_the_control_plane(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    async def becomes(status: int) -> httpx.Response:
        async def asked() -> httpx.Response | None:
            response = await http.get("/health")
            return response if response.status_code == status else None

        return await eventually(asked)

    await becomes(200)
    assert fleet.server is not None
    await fleet.server.set_serving(False)
    response = await becomes(503)
    assert error_of(response, 503)["code"] == "control_plane_unreachable"
    assert response.headers["retry-after"] == "1"


async def test_bodies_over_the_limit_are_413(fleet: FakeFleet) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with (
        running_gateway(fleet, max_body_bytes=1000) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        announced = await http.post("/v1/completions", content=b" " * 1001)
        assert error_of(announced, 413)["code"] == "request_too_large"
        error_of(await http.post("/v1/completions", content=parts()), 413)
        assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200


async def test_bodies_on_their_way_are_bounded_together(fleet: FakeFleet) -> None:
    async with running_gateway(fleet, max_body_bytes=200_000) as gateway:
        host, _, port = gateway.http_url.removeprefix("http://").rpartition(":")
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"

        async def unfinished() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + b" " * 199_999)
            return reader, writer

        held = [await unfinished() for _ in range(60)]
        refused = [asyncio.create_task(reader.readline()) for reader, _ in held]
        await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.3)
        # Who is refused while it still writes may see no more than the end of its connection.
        answers = [task.result() for task in refused if task.done() and not task.exception()]
        assert 0 < len(answers) < 30 and set(answers) == {b"HTTP/1.1 503 Service Unavailable\r\n"}
        async with httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http:
            assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200
            for _, writer in held:
                writer.transport.abort()
            await asyncio.gather(*refused, return_exceptions=True)
            long = COMPLETION | {"prompt": "x " * 90_000}

            async def is_taken() -> bool:
                return (await http.post("/v1/completions", json=long)).status_code != 503

            await eventually(is_taken)


@pytest.mark.parametrize("after_an_answer", [False, True])
async def test_connections_without_a_request_are_closed(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, after_an_answer: bool
) -> None:
    monkeypatch.setattr("controlplane.gateway.http.connection.HEAD_TIMEOUT_S", 0.3)
    host, _, port = gateway.http_url.removeprefix("http://").rpartition(":")

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            reader, writer = await asyncio.open_connection(host, int(port))
            if not after_an_answer:
                return reader, writer
            # Where this process pauses for long, one is closed before it has asked.
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1")
                return reader, writer
            writer.close()

    async def closed(trickled: bytes) -> None:
        reader, writer = await opened()
        ending = asyncio.create_task(reader.read())
        for byte in trickled:
            if not ending.done():
                writer.write(bytes((byte,)))
                await asyncio.wait([ending], timeout=0.1)
        with suppress(ConnectionResetError):  # for a byte that came behind the end
            await ending
        writer.close()

    async with asyncio.timeout(30):
        await asyncio.gather(closed(b""), closed(b"GET /health HTTP/1.1\r\nHost: " + b"x" * 100))


async def test_requests_may_take_longer_than_their_heads(
    http: httpx.AsyncClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.gateway.http.connection.HEAD_TIMEOUT_S", 0.2)
    fleet.planes[0].delay_s = 0.1
    num_answers = 0

    async def answered_twice() -> bool:
        nonlocal num_answers
        # Where this process pauses for long, a connection is closed before it has asked.
        with suppress(httpx.TransportError):
            response = await http.post("/v1/completions", json=COMPLETION | {"max_tokens": 4})
            assert response.status_code == 200
            num_answers += 1
        return num_answers == 2

    await eventually(answered_twice)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        pytest.param(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "both Content-Length and Transfer-Encoding",
            id="two lengths",
        ),
        pytest.param(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
            "bad Content-Length",
            id="no length",
        ),
        pytest.param(b"GET /health\x00 HTTP/1.1\r\n\r\n", "no HTTP/1.1 request", id="no HTTP"),
    ],
)
async def test_what_could_be_cut_in_two_ways_ends_its_connection(
    gateway: RunningGateway, request_: bytes, told: str
) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    host, _, port = gateway.http_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_ + smuggled)
    async with asyncio.timeout(30):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"connection: close" in head.lower()
    error = json.loads(body)["error"]  # and nothing behind it
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
    assert set(error) == {"message", "type", "param", "code"} and told in error["message"]
    writer.close()


async def test_unknown_paths_and_methods_speak_openai(http: httpx.AsyncClient) -> None:
    assert error_of(await http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert error_of(await http.get("/" + "x" * 5000), 404)["code"] == "unknown_url"
    response = await http.get("/v1/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


async def test_sse_on_the_wire(http: httpx.AsyncClient) -> None:
    body = COMPLETION | {"stream": True, "max_tokens": 2}
    response = await http.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert "usage" not in chunks[0]


async def test_error_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    async def fail(plane: Any, done: int) -> None:
        if done == 1:
            raise RuntimeError("secret")

    fleet.planes[0].before_token = fail
    body = COMPLETION | {"stream": True, "extra": None}
    del body["extra"]
    response = await http.post("/v1/completions", json=body)
    last = response.text.strip().split("\n\n")[-1]
    assert response.status_code == 200 and "secret" not in response.text
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


async def test_stop_reason_is_told(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    original = fleet.planes[0]._stream

    async def stopped(request: Any) -> Any:
        async for response in original(request):
            if response.HasField("finished"):
                response.finished.finish_reason = 1
                response.finished.stop_string = "END"
            yield response

    fleet.planes[0]._stream = stopped  # type: ignore[method-assign]
    (choice,) = (await http.post("/v1/completions", json=COMPLETION)).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "END")


async def test_deadline_of_http_requests_is_504(fleet: FakeFleet) -> None:
    fleet.planes[0].delay_s = 60.0
    async with (
        running_gateway(fleet, http_timeout_s=0.3) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        error = error_of(await http.post("/v1/completions", json=COMPLETION), 504)
        assert error["code"] == "deadline_exceeded"


async def test_over_the_limit_is_429(fleet: FakeFleet) -> None:
    async with (
        running_gateway(fleet, max_concurrent_requests=2) as gateway,
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
    ):
        response = await http.post("/v1/completions", json=COMPLETION | {"n": 3})
        assert error_of(response, 429)["code"] == "gateway_full"
        assert response.headers["retry-after"] == "1"
        assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200


async def test_tenant_and_tracing_headers_go_down(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    headers = {
        "X-Chorale-Tenant": "acme",
        "traceparent": "00-1-2-01",
        "tracestate": "caf\u00e9".encode("latin-1").decode("latin-1"),
        "authorization": "Bearer s",
    }
    raw = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
    response = await http.post("/v1/completions", json=COMPLETION, headers=raw)
    assert response.status_code == 200
    (sent,), (metadata,) = fleet.planes[0].requests, fleet.planes[0].metadata
    assert sent.tenant == "acme" and fleet.admits[0].tenant == "acme"
    assert metadata["traceparent"] == "00-1-2-01"
    assert "tracestate" not in metadata and "authorization" not in metadata


async def test_a_token_for_a_private_source_goes_to_admission_only(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    name = "x-chorale-source-token"
    response = await http.post("/v1/completions", json=COMPLETION, headers={name: "hf_1"})
    assert response.status_code == 200
    assert fleet.metadata[-1][name] == "hf_1"
    assert all(name not in metadata for metadata in fleet.planes[0].metadata)
    for token in ("two words", "x" * 4097, "caf\u00e9"):
        refused = await http.post(
            "/v1/completions", json=COMPLETION, headers=[(name.encode(), token.encode("latin-1"))]
        )
        assert error_of(refused, 400)["code"] == "source_token_invalid"


async def test_tracing_headers_too_long_to_go_down_are_left_out(
    http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    headers = {"traceparent": "00-1-2-01", "baggage": "b" * 40_000}
    response = await http.post("/v1/completions", json=COMPLETION, headers=headers)
    assert response.status_code == 200, response.text
    (metadata,) = fleet.planes[0].metadata
    assert metadata["traceparent"] == "00-1-2-01" and "baggage" not in metadata


async def test_a_client_that_does_not_read_holds_back_its_own_stream_only(
    gateway: RunningGateway, http: httpx.AsyncClient, fleet: FakeFleet
) -> None:
    host, _, port = gateway.http_url.removeprefix("http://").rpartition(":")
    body = json.dumps(COMPLETION | {"stream": True, "max_tokens": 10_000_000}).encode()
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    writer.write(body)
    plane, before = fleet.planes[0], 0
    while plane.num_said == 0 or before != plane.num_said:  # until nothing more of it moves
        before = plane.num_said
        await asyncio.sleep(0.3)
    response = await http.post("/v1/completions", json=COMPLETION | {"max_tokens": 3})
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == len(story(DRAWN_SEED, 3))
    writer.transport.abort()
    await eventually(lambda: not plane.running)
