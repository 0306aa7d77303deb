"""`chorale up` with all its real parts and the demo model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from chorale import Client, ResourceExhaustedError, UnavailableError
from controlplane.cli.supervisor import demo_assets
from tests.helpers.up import ChoraleUp, chorale, chorale_environment
from tests.helpers.waiting import PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def adapter_dirs() -> list[Path]:
    demo = demo_assets.find()
    assert demo is not None
    return sorted(path.parent for path in (demo / "adapters").glob("*/adapter_config.json"))


def generate(up: ChoraleUp, adapter: str = "") -> subprocess.CompletedProcess[str]:
    arguments = ["--max-tokens", "24", "--json", "407 ="]
    named = ["--adapter", adapter] if adapter else []
    return chorale("generate", *named, *arguments, CHORALE_ADDRESS=up.grpc_address)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=PATIENCE_S)[1]


def text_of(client: Client, adapter: str = "") -> str:
    return client.complete("407 =", model=adapter, max_tokens=24, timeout=60).text


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_serves_stops_and_finds_its_adapters_again(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    source = adapter_dirs()[0]
    with ChoraleUp(data_dir) as up:
        print(f"ready after {up.ready_s:.1f} s")
        added = chorale("adapters", "add", "voice", str(source), CHORALE_ADDRESS=up.grpc_address)
        assert added.returncode == 0, added.stderr
        with Client(up.grpc_address) as client:
            text = {name: text_of(client, name) for name in ("", "voice", "voice@1")}
        assert text["voice"] == text["voice@1"] != text[""]
        by_command = generate(up, "voice")
        assert by_command.returncode == 0, by_command.stderr
        assert json.loads(by_command.stdout)["text"] == text["voice"]
        with urllib.request.urlopen(f"http://{up.http_address}/v1/models", timeout=10) as response:
            listed = {model["id"] for model in json.load(response)["data"]}
        assert {"voice", demo_assets.MODEL_NAME} <= listed
        status = json.loads(chorale("status", "--json", CHORALE_ADDRESS=up.grpc_address).stdout)
        assert status["num_adapters"] == 1
        assert [one["data_plane_id"] for one in status["data_planes"]] == ["data-plane-0"]
        started = up.descendants()
        assert len(started) >= 5  # redis, control plane, gateway, frontend, engine
        _lock_and_secrets(up)
        started_s = time.monotonic()
        assert up.stop(signal.SIGTERM) == 0
        print(f"stopped after {time.monotonic() - started_s:.1f} s")
        assert gone(started)
        assert up.stdout_lines == [f"ready grpc={up.grpc_address} http={up.http_address}"]
        assert up.stderr == "" and not (data_dir / "fleet-token").exists()

    # SIGKILL leaves no orphan, and the data dir usable.
    with ChoraleUp(data_dir) as up:
        with Client(up.grpc_address) as client:
            assert text_of(client, "voice") == text["voice"]
        started = up.descendants()
        up.kill()
        assert gone(started)
    with ChoraleUp(data_dir) as up:
        with Client(up.grpc_address) as client:
            assert text_of(client, "voice") == text["voice"]
        started = up.descendants()
        # A terminal's Ctrl-C goes to its whole process group: the parts must not die of it alone.
        os.killpg(up.pid, signal.SIGINT)
        assert up.wait() == 0
        assert gone(started) and up.stderr == ""
        assert list(up.temporary.iterdir()) == [], "its sockets are gone"
    assert not (data_dir / "fleet-token").exists()


def _lock_and_secrets(up: ChoraleUp) -> None:
    """Of a deployment that runs: nobody else gets its data dir, and others cannot see its token."""
    data_dir = str(up.data_dir)
    second = chorale("up", "--data-dir", data_dir, "--grpc-port=0", "--http-port=0")
    assert (second.returncode, second.stdout) == (4, "")
    assert second.stderr.startswith("error: DATA_DIR_LOCKED: ")
    assert str(up.pid) in second.stderr and "--data-dir" in second.stderr
    with Client(up.grpc_address) as client:
        assert text_of(client)

    token = up.part("data-plane-0").environ()["CHORALE_FLEET_TOKEN"]
    assert len(token) >= 32
    left = up.data_dir / "fleet-token"
    assert left.read_text() == f"{token}\n" and left.stat().st_mode & 0o777 == 0o600
    shown = chorale("pool", CHORALE_ADDRESS=up.grpc_address, CHORALE_DATA_DIR=data_dir)
    assert shown.returncode == 0, shown.stderr
    assert "integrity: every page has exactly one owner" in shown.stdout
    assert not any(token in " ".join(one.cmdline()) for one in up.descendants())


def test_parts_that_die_come_back(tmp_path: Path) -> None:
    with (
        ChoraleUp(tmp_path / "data", "--data-planes", "2", "--num-threads", "1") as up,
        Client(up.grpc_address) as client,
    ):
        client.adapters.register("voice", str(adapter_dirs()[0]))
        before = text_of(client, "voice")
        for name in ("data-plane-0", "control-plane", "redis", "gateway"):
            victim = up.part(name)
            family = [victim, *victim.children(recursive=True)]
            victim.kill()
            assert gone(family), f"{name} left a process behind"
            until(lambda name=name, old=victim.pid: _replaced(up, name, old))
            until(lambda: _answers(up, before))
            assert f"{name} was ended by SIGKILL" in up.stderr
        until(lambda: _num_data_planes(up) == 2)
        assert up.stop() == 0


def _replaced(up: ChoraleUp, name: str, old: int) -> bool:
    try:
        return up.part(name).pid != old
    except (AssertionError, psutil.NoSuchProcess):
        return False


def _has_part(up: ChoraleUp, name: str) -> bool:
    try:
        return up.part(name).is_running()
    except AssertionError:
        return False


def _answers(up: ChoraleUp, right: str) -> bool:
    """Whether it is served again; never otherwise than before."""
    try:
        with Client(up.grpc_address) as client:
            text = text_of(client, "voice")
    except (UnavailableError, ResourceExhaustedError):
        return False
    assert text == right
    return True


def _num_data_planes(up: ChoraleUp) -> int:
    with Client(up.grpc_address) as client:
        return len(client.data_planes())


def test_an_occupied_port_fails_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = ["--grpc-port=0", f"--http-port={server.getsockname()[1]}"]
        done = chorale("up", "--data-dir", str(tmp_path / "data"), *ports)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: PORT_IN_USE: --http-port ")
    assert list((tmp_path / "data" / "logs").iterdir()) == []


def test_a_model_that_is_not_there_ends_it_with_the_reason(tmp_path: Path) -> None:
    up = ChoraleUp(tmp_path / "data", "--model", str(tmp_path / "no-model"))
    up.spawn()
    assert up.wait() == 2
    assert "no-model" in up.stderr and "PART_FAILED: data-plane-0" in up.stderr
    assert up.stdout_lines == []
    up.close()


# How far it has come; an engine has to load its libraries first.
STAGES: dict[str, Callable[[ChoraleUp], object]] = {
    "has the lock": lambda up: (up.data_dir / "up.lock").exists(),
    "has a store": lambda up: _has_part(up, "redis"),
    "starts its parts": lambda up: _has_part(up, "gateway"),
    "starts an engine": lambda up: _has_part(up, "data-plane-0") and up.find_engine(),
}


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_while_it_starts(tmp_path: Path, stage: str) -> None:
    up = ChoraleUp(tmp_path / "data")
    up.spawn()
    until(lambda: STAGES[stage](up))
    started = up.descendants()
    assert up.stop() == 0
    assert gone(started)
    assert up.stdout_lines == []
    up.close()


def test_equal_ports_are_a_usage_error(tmp_path: Path) -> None:
    done = chorale(
        "up", "--data-dir", str(tmp_path), "--grpc-port", "50051", "--http-port", "50051"
    )
    assert done.returncode == 2 and "--http-port" in done.stderr


def test_data_plane_help_is_the_other_programs() -> None:
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "controlplane.cli.main", "data-plane", "--help"],
        env=chorale_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--max-running" in shown.stdout
