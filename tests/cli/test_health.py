"""`chorale health` against servers that serve, do not, and are not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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


def test_it_loads_nothing_that_it_does_not_need(server: tuple[str, Any]) -> None:
    """Every container runs it every few seconds."""
    address, servicer = server
    servicer.set("", STATUS.SERVING)
    heavy = "google.protobuf", "grpc_health.v1", "redis", "msgspec", "torch", "controlplane.cli.app"
    code = (
        "import sys, controlplane.cli.main as cli\n"
        "try: cli.main()\n"
        f"finally: print([each for each in {heavy} if each in sys.modules])"
    )
    command = [sys.executable, "-c", code, "health", f"--address={address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "SERVING\n[]\n"), done.stderr


def test_options_before_it(server: tuple[str, Any], tmp_path: Path) -> None:
    """All of `chorale` takes them, and then health is one command of it."""
    address, servicer = server
    servicer.set("", STATUS.SERVING)
    command = [sys.executable, "-m", "controlplane.cli.main", "--tls-ca-file", str(tmp_path / "no")]
    done = subprocess.run(
        [*command, "health", f"--address={address}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "TLS_CA_FILE_INVALID" in done.stderr


def test_nobody_there(chorale: Chorale) -> None:
    with refusing() as address:
        asked = chorale("health", f"--address={address}")
    assert asked.exit_code == 5 and f"NO_SERVER: nothing serves at {address}" in asked.stderr
