"""Adapters that the servers do not have: sent from here, and served from the data plane."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chorale
from storage.files import WEIGHTS_NAME
from tests.e2e.conftest import ADAPTERS, NAMES, expected
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import until


def run(up: ChoraleUp, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", *arguments],
        env={**os.environ, "CHORALE_ADDRESS": up.grpc_address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_uploaded_adapter_speaks(up: ChoraleUp, client: chorale.Client, tmp_path: Path) -> None:
    """From a directory that no server may read, changed so that no tier has it yet."""
    voice = NAMES[0]
    away = tmp_path / "away"
    shutil.copytree(ADAPTERS / voice, away)
    config = json.loads((away / "adapter_config.json").read_text())
    config["lora_alpha"] *= 1.0000001  # another digest, the same words
    (away / "adapter_config.json").write_text(json.dumps(config))
    added = run(up, "adapters", "add", "uploaded", str(away), "--upload")
    assert added.startswith("added uploaded@1 ")
    version = client.adapters.get("uploaded").adapter.versions[0]
    assert version.source == f"blob:{version.digest}"
    assert (up.data_dir / "blobs" / "blobs" / version.digest / WEIGHTS_NAME).exists()
    shutil.rmtree(away)
    answer = client.complete("407 =", model="uploaded", max_tokens=80)
    assert answer.text.strip() == expected(voice, 407)
    assert "is unchanged" in run(up, "adapters", "verify", "uploaded")
    show = ("adapters", "show", "uploaded", "--json", "--data-dir", str(up.data_dir))
    until(lambda: json.loads(run(up, *show))["residency"])  # by the next heartbeat
    shown = json.loads(run(up, *show))
    assert shown["residency"][0]["tier"] == "pool"
    (load,) = shown["loads"]
    assert (load["version"], load["from"]) == (1, "source")
    assert min(load["read_s"], load["parse_s"], load["build_s"]) > 0
