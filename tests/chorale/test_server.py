"""What every server of ours does with a call before its handler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from chorale import server as grpc_server
from chorale.errors import InvalidArgumentError
from chorale.server import TypedErrors, start_server
from chorale.status import from_rpc_error, to_status
from chorale.v1 import adapter_registry_pb2_grpc as registry_grpc
from chorale.v1 import inference_pb2 as pb
from chorale.v1 import inference_pb2_grpc, relay_pb2_grpc
from tests.helpers.garbage import no_collections
from tests.helpers.waiting import eventually

IDLE, READY = grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.READY
MALFORMED = [b"\xff\xff\xff", b"\x0a\x05"]  # no field; less than it says


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("reached")
        yield


class _Failing(inference_pb2_grpc.InferenceServiceServicer):
    """By itself, or as a proxy does with another server's status."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise InvalidArgumentError("SAMPLE", request.prompt)
        yield

    async def Tokenize(self, request: Any, context: Any) -> Any:
        try:
            raise ValueError(request.text)
        except ValueError as error:
            status = to_status(InvalidArgumentError("SAMPLE", "sample"))
            await context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError("not aborted") from error


class _Registry(registry_grpc.AdapterRegistryServiceServicer):
    async def GetAdapter(self, request: Any, context: Any) -> Any:
        raise AssertionError("reached")

    async def UploadAdapter(self, request_iterator: Any, context: Any) -> Any:
        async for _ in request_iterator:
            raise AssertionError("reached")


class _Relay(relay_pb2_grpc.RelayServiceServicer):
    async def Relay(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in request_iterator:
            raise AssertionError("reached")
            yield


@pytest.mark.parametrize("message", MALFORMED)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_stream", "InferenceService/Generate"),
        ("unary_unary", "AdapterRegistryService/GetAdapter"),
        ("stream_unary", "AdapterRegistryService/UploadAdapter"),
        ("stream_stream", "RelayService/Relay"),
    ],
)
async def test_malformed_messages_are_invalid_never_unknown(
    kind: str, method: str, message: bytes
) -> None:
    relay: Any = relay_pb2_grpc
    inference: Any = inference_pb2_grpc
    registry: Any = registry_grpc

    def add(server: grpc.aio.Server) -> None:
        inference.add_InferenceServiceServicer_to_server(_Inference(), server)
        registry.add_AdapterRegistryServiceServicer_to_server(_Registry(), server)
        relay.add_RelayServiceServicer_to_server(_Relay(), server)

    server = await start_server(
        host="127.0.0.1",
        port=0,
        services=[("chorale.v1.InferenceService", add)],
        error_table={},
    )
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = getattr(channel, kind)(f"/chorale.v1.{method}")
        answer = call([message] if kind.startswith("stream") else message, timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            if kind.endswith("stream"):
                async for _ in answer:
                    pass
            else:
                await answer
    await server.stop(0)
    error = from_rpc_error(seen.value)
    assert isinstance(error, InvalidArgumentError) and error.reason == "REQUEST_MALFORMED"


@pytest.mark.parametrize(
    ("kind", "method", "request_type"),
    [
        ("unary_stream", "Generate", pb.GenerateRequest),
        ("unary_unary", "Tokenize", pb.TokenizeRequest),
    ],
)
async def test_a_request_that_failed_is_gone_with_its_call(
    kind: str, method: str, request_type: Any
) -> None:
    inference: Any = inference_pb2_grpc

    def add(server: grpc.aio.Server) -> None:
        inference.add_InferenceServiceServicer_to_server(_Failing(), server)

    server = await start_server(
        host="127.0.0.1",
        port=0,
        services=[("chorale.v1.InferenceService", add)],
        error_table={},
    )
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = getattr(channel, kind)(f"/chorale.v1.InferenceService/{method}")
            with no_collections(request_type) as num_left:
                answer = call(b"", timeout=60)
                with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
                    await (answer if kind == "unary_unary" else anext(aiter(answer)))
                await eventually(lambda: num_left() == 0, within_s=5)
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    "busy_s",
    [0.5, pytest.param(31.0, marks=pytest.mark.slow)],  # gRPC itself waits for 30
)
async def test_calls_that_come_while_the_loop_is_busy_are_answered(busy_s: float) -> None:
    server = await start_server(host="127.0.0.1", port=0, services=[], error_table={})

    loop = asyncio.get_running_loop()
    connected, called = asyncio.Event(), threading.Event()

    def burst() -> Counter[grpc.StatusCode]:
        with grpc.insecure_channel(server.address) as channel:
            grpc.channel_ready_future(channel).result(60)
            loop.call_soon_threadsafe(connected.set)
            stub: Any = health_pb2_grpc.HealthStub(channel)
            calls = [stub.Check.future(health_pb2.HealthCheckRequest()) for _ in range(3000)]
            called.set()
            return Counter(call.code() for call in calls)

    codes = loop.run_in_executor(None, burst)
    await connected.wait()
    called.wait(60)  # so looks a loop to gRPC that has much to do
    time.sleep(busy_s)
    assert await codes == {grpc.StatusCode.OK: 3000}
    await server.stop(0)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_a_failure_that_nobody_can_be_told_ends_the_call_and_is_not_logged(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's deadline has passed, and grpc.aio finds out when it sends the status."""

    class Over:
        async def abort_with_status(self, status: Any) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    def failed() -> None:
        raise InvalidArgumentError("SAMPLE", "sample")

    async def unary(request: Any, context: Any) -> None:
        failed()

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        failed()
        yield

    methods: Any = grpc
    make = getattr(methods, f"{kind}_rpc_method_handler")
    inner = make(unary if kind == "unary_unary" else stream)

    async def found(_: Any) -> Any:
        return inner

    interceptor: Any = TypedErrors({})
    details: Any = SimpleNamespace(method="/chorale.v1.InferenceService/Generate")
    handler = await interceptor.intercept_service(found, details)
    answer = getattr(handler, kind)(object(), Over())
    with pytest.raises(asyncio.CancelledError):
        await (answer if kind == "unary_unary" else anext(answer))
    assert not caplog.records


async def test_a_connection_without_calls_is_closed_and_the_next_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_server, "MAX_IDLE_S", 0.2)
    running = await start_server(host="127.0.0.1", port=0, services=[], error_table={})
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for _ in range(3):
                await stub.Check(health_pb2.HealthCheckRequest())
                assert await eventually(lambda: channel.get_state() == IDLE)
            watching = stub.Watch(health_pb2.HealthCheckRequest())
            assert await watching.read()
            await asyncio.sleep(0.6)
            assert channel.get_state() == READY, "a call that runs is one"
            watching.cancel()
    finally:
        await running.stop(0)
