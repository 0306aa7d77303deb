from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.errors import BlockedError, PortInUseError, UsageError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.supervisor import plan, ports


@pytest.fixture
def host() -> str:
    """An address of this machine on which no other process takes ports meanwhile."""
    if sys.platform != "linux":
        return "127.0.0.1"
    high, low = divmod(os.getpid(), 250)
    return f"127.77.{high % 250}.{low + 1}"


def test_an_occupied_port_is_refused_by_name(host: str) -> None:
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            ports.claim("--http-port", host, port)
    assert caught.value.exit_code == ExitCode.BLOCKED
    assert "--http-port" in caught.value.message and str(port) in caught.value.message
    assert ports.claim("--http-port", host, port) == port


def test_zero_picks_a_port_that_can_be_bound_and_is_not_taken(host: str) -> None:
    first = ports.claim("--grpc-port", host, 0)
    second = ports.claim("--http-port", host, 0, {first})
    assert first != second
    with socket.create_server((host, second)):
        pass


def options(**changes: Any) -> plan.UpOptions:
    fields: dict[str, Any] = dict.fromkeys(
        ("redis_url", "model", "model_name", "pool_bytes", "host_cache_bytes", "disk_cache_bytes")
    )
    fields |= {"max_context_tokens": None, "num_threads": None, "device": "cpu", "dtype": "auto"}
    fields |= {"data_dir": Path("/d"), "host": "127.0.0.1", "grpc_port": 0, "http_port": 0}
    return plan.UpOptions(**{**fields, "num_data_planes": 2, "adapter_roots": [], **changes})


def test_each_part_gets_its_metrics_port() -> None:
    chosen = options(metrics_port=ports.free_port("127.0.0.1"))
    first = chosen.metrics_port
    assert first is not None
    addresses = plan.Addresses("127.0.0.1", 1, 2, 3)
    parts = [plan.control_plane(chosen, addresses, "redis://x")]
    parts += plan.data_planes(chosen, addresses, Path("/d")).values()
    for number, part in enumerate(parts):
        assert f"--metrics-port={first + number}" in part.command
    silent = plan.control_plane(options(), addresses, "redis://x")
    assert not any("metrics" in word for word in silent.command)


def test_metrics_ports_are_claimed_together() -> None:
    for changes, reason in (
        ({"metrics_port": 65_534}, "METRICS_PORT_INVALID"),
        ({"metrics_port": 40_000, "http_port": 40_002}, "PORTS_EQUAL"),
    ):
        with pytest.raises(UsageError) as caught:
            plan.claim_addresses(options(**changes))
        assert caught.value.reason == reason
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUseError, match="--metrics-port"):
            plan.claim_addresses(options(metrics_port=port))


def test_an_address_of_another_machine_says_so() -> None:
    for port in (0, 50051):
        with pytest.raises(BlockedError, match="--host"):
            ports.claim("--grpc-port", "192.0.2.1", port)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_addresses_are_written_in_brackets(host: str) -> None:
    addresses = plan.Addresses(host, 1, 2, 3)
    assert (addresses.grpc, addresses.http) == ("[::1]:1", "[::1]:2")
    assert addresses.http_from_here == "[::1]:2"


@pytest.mark.parametrize("host", ["::", "[::]"])
def test_all_interfaces_are_reached_by_the_loopback_one(host: str) -> None:
    assert plan.Addresses(host, 1, 2, 3).http_from_here == "[::1]:2"
