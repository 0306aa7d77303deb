from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chorale.errors import NotFoundError
from chorale.v1 import inference_pb2 as pb
from controlplane.cli.app import app
from tests.benchmarks.test_targets import scripted
from tests.helpers.fake_openai import FakeOpenAI, serving
from tests.helpers.scripted_gateway import ScriptedGateway, generation, scripted_gateway
from tests.helpers.up import chorale_environment

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def gateway() -> Generator[ScriptedGateway]:
    with scripted_gateway() as made:
        scripted(made).answers["Generate"] = answer
        yield made


def answer(request: pb.GenerateRequest) -> Any:
    """As many tokens as were asked for; the adapter "gone" is unknown."""
    if request.model == "gone":
        return NotFoundError("ADAPTER_UNKNOWN", "no adapter is called gone")
    return generation(["x"] * request.sampling.max_tokens)


def bench(gateway: ScriptedGateway, *arguments: str) -> Any:
    command = ["bench", *arguments, "--target", f"grpc://{gateway.address}"]
    return CliRunner().invoke(app, command)


SMALL: dict[str, list[str]] = {
    "slora": ["--rate=200", "--duration=0.1", "--input-tokens=2:9", "--output-tokens=1:5"],
    "truefoundry": ["--requests=6"],
    "closed": ["--requests=6", "--concurrency=3", "--output-tokens=4"],
    "oversubscribed": ["--fits=1", "--rounds=2", "--requests=4", "--output-tokens=4"],
}


@pytest.mark.parametrize("workload", SMALL)
def test_every_workload_reports_everything(
    gateway: ScriptedGateway, tmp_path: Path, workload: str
) -> None:
    out = tmp_path / "out.json"
    result = bench(
        gateway, workload, *SMALL[workload], "--adapters=a,b", "--ttft-slo=60", f"--json={out}"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["schema"] == "chorale-bench/1" and report["benchmark"] == workload
    assert report["workload"]["num_adapters"] == 2
    assert report["target"]["base_model"] == "bench"
    assert report["target"]["url"] == f"grpc://{gateway.address}"
    assert report["prompts"] == {"seed": 0, "vocab_size": 512}
    assert {"commit", "processor", "num_cores", "measured_at"} <= set(report["client"])
    names = [phase["name"] for phase in report["phases"]]
    assert names == (["fits", "over"] * 2 if workload == "oversubscribed" else [workload])
    for phase in report["phases"]:
        figures = phase["summary"]
        assert figures["num_failed"] == 0 and figures["num_short"] == 0
        assert figures["num_completed"] == len(phase["requests"]) > 0
        assert figures["attainment"] == 1.0 and figures["ttft_s"]["p99"] > 0
        assert isinstance(phase["client_lag"]["kept_up"], bool)
        for request in phase["requests"]:
            assert request["tokens"] == request["wanted_tokens"] == sum(request["token_counts"])
            assert len(request["token_s"]) == len(request["token_counts"])
    assert ("ttft_s_p50_over_to_fits" in report["ratios"]) == (workload == "oversubscribed")
    # The table of the same figures.
    assert workload in result.stdout and "tokens/s" in result.stdout


def test_adapters_are_used_once_before_unless_told_otherwise(gateway: ScriptedGateway) -> None:
    def models(*arguments: str) -> list[str]:
        gateway.requests.clear()
        found = bench(gateway, "closed", "--requests=4", "--adapters=a,b,c", *arguments)
        assert found.exit_code == 0, found.output
        requests = [one for one in gateway.requests if isinstance(one, pb.GenerateRequest)]
        return sorted(one.model for one in requests)

    assert models() == ["a", "a", "a", "b", "b", "c", "c"]
    assert models("--no-warm-up") == ["a", "a", "b", "c"]


def test_a_directory_of_adapters_is_registered(gateway: ScriptedGateway, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    gateway.answers["RegisterAdapter"] = lambda request: NotFoundError("BAD", "not today")
    result = bench(gateway, "closed", f"--adapters={tmp_path}")
    assert result.exit_code == 5
    assert "BAD" in result.stderr and "'x'" in result.stderr
    register = gateway.requests[-1]
    assert (register.name, register.base_model) == ("x", "bench")
    assert register.source == str(tmp_path / "x")


def test_plots_are_pictures(gateway: ScriptedGateway, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = bench(gateway, "oversubscribed", *SMALL["oversubscribed"], "--adapters=a,b",
                   f"--plot={out}")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(PNG)


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    gateway: ScriptedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.load.plot.find_spec", lambda name: None)
    result = bench(gateway, "closed", f"--plot={tmp_path / 'out.png'}")
    assert result.exit_code == 2 and "PLOT_UNAVAILABLE" in result.stderr
    assert "chorale[bench]" in result.stderr and not gateway.requests


def test_failures_are_counted_and_shown(gateway: ScriptedGateway, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = bench(
        gateway, "closed", "--requests=6", "--adapters=a,gone", "--no-warm-up", f"--json={out}"
    )
    assert result.exit_code == 0
    assert "3 of ADAPTER_UNKNOWN: no adapter is called gone" in result.stdout
    (phase,) = json.loads(out.read_text())["phases"]
    assert phase["summary"]["errors"] == {"ADAPTER_UNKNOWN": 3}


def test_nothing_completed_is_an_error(gateway: ScriptedGateway) -> None:
    result = bench(gateway, "closed", "--requests=2", "--adapters=gone", "--no-warm-up")
    assert result.exit_code == 5


def test_answers_of_another_length_are_shown(gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = generation(["x"])
    result = bench(gateway, "closed", "--requests=2", "--no-warm-up")
    assert "2 answers have not the length" in result.stdout


def test_openai_endpoints_are_measured_alike(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with serving(FakeOpenAI(gap_s=0.01)) as fake:
        command = ["bench", "truefoundry", f"--target={fake.url}", "--adapters=pirate"]
        result = CliRunner().invoke(app, [*command, f"--json={out}", "--requests=5"])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    (phase,) = report["phases"]
    assert phase["summary"]["num_output_tokens"] == 50 and phase["summary"]["num_short"] == 0
    assert phase["summary"]["gap_s"]["p50"] >= 0.002
    assert report["prompts"]["vocab_size"] == 256


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["closed", "--target=127.0.0.1:1"], 5, "TARGET_INVALID"),
        (["closed", "--target=grpc://127.0.0.1:1", "--adapters=a,,b"], 2, "ADAPTERS_INVALID"),
        (["closed", "--target=grpc://127.0.0.1:1", "--adapters=no/such"], 3, "NO_ADAPTERS"),
        (["closed", "--target=grpc://127.0.0.1:1", "--json=/no/such/x"], 3, "OUTPUT_INVALID"),
        (["slora", "--target=grpc://127.0.0.1:1", "--input-tokens=8"], 2, "RANGE_INVALID"),
        (["slora", "--target=grpc://127.0.0.1:1", "--input-tokens=9:8"], 2, "WORKLOAD_INVALID"),
        (
            ["oversubscribed", "--target=grpc://127.0.0.1:1", "--adapters=a", "--fits=1"],
            2,
            "WORKLOAD_INVALID",
        ),
        (["closed", "--target=http://127.0.0.1:1/v1"], 5, "NO_OPENAI_API"),
        (["oversubscribed", "--target=grpc://127.0.0.1:1", "--fits=1"], 2, "--adapters"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], code: int, reason: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == code, result.output
    assert reason in result.stderr


def test_the_client_side_never_imports_torch() -> None:
    code = (
        "import sys, controlplane.cli.bench, benchmarks.load.run, benchmarks.load.plot,"
        " benchmarks.load.show, benchmarks.load.openai_target, benchmarks.load.grpc_target\n"
        "sys.exit('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], env=chorale_environment(), check=False)
    assert found.returncode == 0
