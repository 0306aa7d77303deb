"""Where the roles find their secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import controlplane.main
from controlplane.cli.app import app
from controlplane.options import ControlPlaneOptions


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ControlPlaneOptions]:
    """The options of the control planes that would have run."""
    seen: list[ControlPlaneOptions] = []

    def run(options: ControlPlaneOptions, **_: Any) -> None:
        seen.append(options)

    monkeypatch.setattr(controlplane.main, "run", run)
    return seen


def control_plane(**environment: str) -> Any:
    arguments = ["control-plane", "--redis=redis://127.0.0.1:1/0"]
    return CliRunner().invoke(app, arguments, env=environment)


def test_secrets_come_from_files(started: list[ControlPlaneOptions], tmp_path: Path) -> None:
    token, password = tmp_path / "token", tmp_path / "password"
    token.write_text("hush\n")
    password.write_text("word\n")
    files = {
        "CHORALE_FLEET_TOKEN_FILE": str(token),
        "CHORALE_REDIS_PASSWORD_FILE": str(password),
    }
    assert control_plane(**files).exit_code == 0
    assert (started[-1].fleet_token, started[-1].redis_password_file) == ("hush", password)
    assert "hush" not in repr(started[-1]) and "word" not in repr(started[-1]).split()
    assert control_plane(**files, CHORALE_FLEET_TOKEN="nearer").exit_code == 0
    assert started[-1].fleet_token == "nearer"


def test_whether_to_predict(started: list[ControlPlaneOptions]) -> None:
    assert control_plane(CHORALE_FLEET_TOKEN="t").exit_code == 0
    assert started[-1].prefetch and started[-1].prefetch_bytes_per_s == 128 << 20
    environment = {"CHORALE_PREFETCH": "0", "CHORALE_PREFETCH_BYTES_PER_S": "9"}
    assert control_plane(CHORALE_FLEET_TOKEN="t", **environment).exit_code == 0
    assert not started[-1].prefetch and started[-1].prefetch_bytes_per_s == 9


def test_refusals(started: list[ControlPlaneOptions], tmp_path: Path) -> None:
    none = control_plane()
    assert none.exit_code == 2 and "CHORALE_FLEET_TOKEN_FILE" in none.stderr
    missing = control_plane(CHORALE_FLEET_TOKEN_FILE=str(tmp_path / "none"))
    assert missing.exit_code == 2
    assert f"fleet_token_file: {tmp_path}/none: No such file" in missing.stderr
    (tmp_path / "empty").touch()
    empty = control_plane(
        CHORALE_FLEET_TOKEN="t", CHORALE_REDIS_PASSWORD_FILE=str(tmp_path / "empty")
    )
    assert empty.exit_code == 2 and "redis_password_file: " in empty.stderr
    assert started == []
