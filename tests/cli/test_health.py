"""`chorale health` against servers that serve, do not, and are not there."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.cli.conftest import Chorale
from tests.helpers.waiting import refusing

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def server() -> Generator[tuple[str, Any]]:
    """HOST:PORT, and what sets its health."""
    made = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield f"127.0.0.1:{port}", servicer
    made.stop(0).wait()


def test_health(chorale: Chorale, server: tuple[str, Any]) -> None:
    address, servicer = server
    servicer.set("", STATUS.SERVING)
    asked = chorale("health", f"--address={address}")
    assert (asked.exit_code, asked.stdout) == (0, "SERVING\n")
    servicer.set("", STATUS.NOT_SERVING)
    asked = chorale("health", f"--address={address}")
    assert asked.exit_code == 5 and "NOT_SERVING" in asked.stderr


def test_nobody_there(chorale: Chorale) -> None:
    with refusing() as address:
        asked = chorale("health", f"--address={address}")
    assert asked.exit_code == 5 and f"NO_SERVER: nothing serves at {address}" in asked.stderr
