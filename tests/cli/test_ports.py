from __future__ import annotations

import socket

import pytest

from controlplane.cli.errors import BlockedError, PortInUseError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.supervisor import ports


def test_an_occupied_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            ports.claim("--http-port", "127.0.0.1", port)
    assert caught.value.exit_code == ExitCode.BLOCKED
    assert "--http-port" in caught.value.message and str(port) in caught.value.message
    assert ports.claim("--http-port", "127.0.0.1", port) == port


def test_zero_picks_a_port_that_can_be_bound_and_is_not_taken() -> None:
    first = ports.claim("--grpc-port", "127.0.0.1", 0)
    second = ports.claim("--http-port", "127.0.0.1", 0, {first})
    assert first != second
    with socket.create_server(("127.0.0.1", second)):
        pass


def test_an_address_of_another_machine_says_so() -> None:
    for port in (0, 50051):
        with pytest.raises(BlockedError, match="--host"):
            ports.claim("--grpc-port", "192.0.2.1", port)
