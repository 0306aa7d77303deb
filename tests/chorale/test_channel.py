"""What CHANNEL_OPTIONS promise, ten times as fast, against a real server that freezes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from chorale.channel import CHANNEL_OPTIONS

_SPEED = 10
_SERVER = """
import time
from concurrent.futures import ThreadPoolExecutor
import grpc

def say(request, context):
    yield request
    time.sleep(60)

handler = grpc.unary_stream_rpc_method_handler(say)
server = grpc.server(
    ThreadPoolExecutor(32),
    handlers=[grpc.method_handlers_generic_handler("test", {"Say": handler})],
    options=[("grpc.http2.min_ping_interval_without_data_ms", 1)],
)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
time.sleep(60)
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def _greeted(stub: Any) -> Any:
    """A stream that has begun. Pings ten times as fast take a server that pauses for dead."""
    until_s = time.monotonic() + 30
    while True:
        answers = stub.unary_stream("/test/Say")(b"hello")
        try:
            assert next(answers) == b"hello"
        except grpc.RpcError:
            assert time.monotonic() < until_s
        else:
            return answers


def test_a_stream_of_a_frozen_server_ends(server: tuple[subprocess.Popen[bytes], int]) -> None:
    process, port = server
    faster = [
        (name, value // _SPEED if name.endswith("_ms") and isinstance(value, int) else value)
        for name, value in CHANNEL_OPTIONS
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=faster) as channel:
        stub: Any = channel
        answers = _greeted(stub)
        process.send_signal(signal.SIGSTOP)
        frozen_s = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - frozen_s < 30, "gRPC itself takes a minute, or never ends it"
