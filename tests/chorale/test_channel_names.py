"""A server that comes back under its name, but elsewhere, as containers and pods do."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chorale.channel import CHANNEL_OPTIONS

NAME = "server.test"
_TYPE_A = 1


class Names(asyncio.DatagramProtocol):
    """A name server: every name is `host`, or nothing while that is empty."""

    def __init__(self) -> None:
        self.host = ""
        self.num_asked = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.num_asked += 1
        question = data[12 : data.index(b"\0", 12) + 5]
        known = bool(self.host) and struct.unpack("!H", question[-4:-2]) == (_TYPE_A,)
        answer = b"\xc0\x0c" + struct.pack("!HHIH", _TYPE_A, 1, 0, 4)
        answer += socket.inet_aton(self.host) if known else b""
        header = data[:2] + struct.pack("!HHHHH", 0x8180, 1, known, 0, 0)
        self._transport.sendto(header + question + (answer if known else b""), addr)


def serve(host: str, port: int) -> tuple[grpc.Server, int]:
    """A server and its port, which nobody else takes at these addresses."""
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    return server, port


@pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2")
async def test_a_server_with_a_new_address_is_found_soon() -> None:
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    dns = transport.get_extra_info("sockname")[1]
    names.host = "127.0.0.2"
    server, port = serve(names.host, 0)
    target = f"dns://127.0.0.1:{dns}/{NAME}:{port}"
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert names.num_asked > 0
        server.stop(0).wait()
        await asyncio.sleep(0.3)  # it is looked up again while the old address still stands
        names.host = "127.0.0.3"
        server, _ = serve(names.host, port)
        end = time.monotonic() + 20  # gRPC itself would look it up again after 30
        while True:
            try:
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                break
            except grpc.aio.AioRpcError:
                assert time.monotonic() < end, "the new address was not looked up"
                await asyncio.sleep(0.05)
    server.stop(0).wait()
    transport.close()
