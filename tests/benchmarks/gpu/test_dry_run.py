"""All parts on CPU with tiny shapes: twice, as the first run's budget is not enough for all."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.adapters import Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import ALONE_BASE, ALONE_ONE, BASE, DIFFERENT, MIXED, ONE
from benchmarks.gpu.parts import Budget, Skipped
from benchmarks.gpu.scale import SCALES
from benchmarks.gpu.variants import Variant, variants
from benchmarks.interference_cases import CASES
from benchmarks.step_loop import StepLoop
from dataplane.engine import setup
from dataplane.engine_options import EngineOptions
from tests.benchmarks.gpu.fake_peer import write_fake_peer

SCALE = SCALES["tiny"]
OPTIONS = ["--device", "cpu", "--shape", "tiny", "--commit", "abc"]


class Runs(NamedTuple):
    first: dict[str, Any]
    second: dict[str, Any]
    printed: str


def tiny_bench(folder: Path) -> Bench:
    """Whose time stands still."""
    device, budget = torch.device("cpu"), Budget(1000.0, lambda: 0.0)
    return Bench(SCALE, device, torch.float32, folder, budget)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("gpu")
    path = folder / "out" / "gpu-cpu-tiny.json"
    reports: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(command, "_say", lines.append)
        patch.setattr(command.process_settings, "settle", lambda: None)  # of the whole process
        options = [*OPTIONS, "--out", str(path.parent)]
        options += ["--peer-lora", str(write_fake_peer(folder / "peer"))]
        for budget in ("50", "1000"):
            # Time stands still, so only estimates decide what is begun.
            assert command.main([*options, "--budget", budget], clock=lambda: 0.0) == 0
            reports.append(json.loads(path.read_text()))
    return Runs(*reports, "\n".join(lines))


def test_a_budget_that_is_too_small_leaves_the_long_parts_to_the_second_run(runs: Runs) -> None:
    long = {"decode-tiny", "slora-s1", "slora-s2", "kernels-lora"}
    assert long <= set(runs.first["skipped"]) and not long & set(runs.first["sections"])
    assert "run again" in runs.first["skipped"]["decode-tiny"]
    assert long <= set(runs.second["sections"])
    for part, section in runs.first["sections"].items():  # not measured again
        assert runs.second["sections"][part] == section
        assert f"{part}: kept" in runs.printed


def test_every_part_is_done_or_says_why_not(runs: Runs) -> None:
    done = runs.second["sections"]
    assert {name: each["state"] for name, each in done.items()} == dict.fromkeys(done, "done")
    assert set(done) | set(runs.second["skipped"]) == set(command.part_names(SCALE))
    for section in done.values():
        assert section["torch"] == torch.__version__ and section["seconds"] == 0.0
    for reason in runs.second["skipped"].values():
        assert "the engine has no" in reason or reason == "only on a GPU"


def test_decode_counts_the_bytes_that_a_step_must_read(runs: Runs) -> None:
    result = runs.second["sections"]["decode-tiny"]["result"]
    shape = SCALE.models["tiny"]
    tokens = SCALE.prompt_tokens + SCALE.new_tokens / 2
    token_bytes = 4 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    adapter = 2 * shape.adapter_bytes(SCALE.rank)  # float32
    base = 2 * shape.base_bytes
    bytes_of = result["bytes"]
    assert bytes_of[BASE] == {"base": base, "adapters": 0, "kv": 4 * tokens * token_bytes}
    assert bytes_of[DIFFERENT]["adapters"] == 4 * adapter
    assert bytes_of[ALONE_ONE] == {"base": base, "adapters": adapter, "kv": tokens * token_bytes}
    assert bytes_of[MIXED]["adapters"] == 4 * shape.adapter_bytes(2) + 4 * shape.adapter_bytes(6)
    roofline = sum(bytes_of[DIFFERENT].values()) / result["copy_bytes_per_s"]
    assert result["roofline_s"][DIFFERENT] == pytest.approx(roofline)
    rounds = sorted(result["step_s"][DIFFERENT])
    median = (rounds[(len(rounds) - 1) // 2] + rounds[len(rounds) // 2]) / 2
    assert result["fraction_of_roofline"][DIFFERENT] == pytest.approx(roofline / median)


def test_slora_really_touches_all_adapters(runs: Runs) -> None:
    most = max(SCALE.slora.num_adapters)
    for part in SCALE.slora.settings:
        result = runs.second["sections"][part]["result"]
        assert result["num_requests"] == most
        assert {n: each[0]["num_touched"] for n, each in result["runs"].items()} == {
            str(n): n for n in SCALE.slora.num_adapters
        }
        assert len(result["runs"][str(min(SCALE.slora.num_adapters))]) == 2
        few, many = (result["runs"][str(n)][0] for n in (2, 6))
        assert 1 <= few["step_distinct_adapters"] <= 2 < many["step_distinct_adapters"] * 2
        assert result["may_be_slower"] >= 1.02


def test_cold_start_interference_truefoundry_and_kernels(runs: Runs) -> None:
    cold = runs.second["sections"]["cold-start"]["result"]
    assert set(cold["first_token_s"]) == {"warm", "host", "disk", "disk less the raw read"}
    rounds = len(cold["first_token_s"]["disk"])
    assert all(len(each) == rounds for each in cold["disk_parts_s"].values())
    assert cold["copy_alone_s"] > 0
    for case, gaps in runs.second["sections"]["interference"]["result"].items():
        if case in CASES:
            assert all(each["num_gaps"] > 20 for each in gaps["gap_s"].values())
    latency = runs.second["sections"]["truefoundry"]["result"]["mean_latency_s"]
    assert set(latency) == {"base only", "1 adapter", "3 adapters"}
    ops = [case["op"] for case in runs.second["sections"]["kernels-lora"]["result"]["cases"]]
    assert set(ops) == {"lora_apply"}


def test_must_hold_lines_are_in_the_report(runs: Runs) -> None:
    lines = {line["name"]: line for line in runs.second["must_hold"]}
    line = lines["tiny: step of 4 different adapters, to its byte roofline"]
    decode = runs.second["sections"]["decode-tiny"]["result"]
    assert line["value"] == decode["fraction_of_roofline"][DIFFERENT]
    assert line["holds"] is (line["value"] >= 0.7)
    assert all(line["holds"] is None for line in lines.values() if line["part"] == "check")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "tiny", "--device", "cpu", "--parts", "decode-x"], "decode-x: there are"),
        (["--shape", "tiny", "--device", "cpu", "--budget", "0"], "--budget 0"),
        (["--device", "cpu"], "--shape tiny"),
    ],
)
def test_options_that_cannot_work(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(options)
    assert message in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        command.main([])
    assert "--device cpu --shape tiny" in capsys.readouterr().err


def test_an_option_is_measured_on_and_off_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an option that a CPU has, too, and a keyword that changes nothing."""
    built: list[tuple[bool, bool]] = []
    build = setup.build_engine

    def noted(
        options: EngineOptions, on_loaded: Callable[[], None], *,
        pipeline_depth: int, magic: bool = False,
    ) -> setup.EngineParts:  # fmt: skip
        built.append((options.prefix_cache, magic))
        return build(options, on_loaded, pipeline_depth=pipeline_depth)

    monkeypatch.setattr(setup, "build_engine", noted)
    both = Variant(options=("prefix_cache",), keywords=("magic",), needs_gpu=False)
    result = variants(tiny_bench(tmp_path), "both", both)
    assert built == [(True, True), (False, False)]
    assert set(result["step_s"]) == {
        f"{case}, {state}"
        for case in (BASE, ONE, DIFFERENT, ALONE_BASE, ALONE_ONE)
        for state in ("with", "without")
    }
    line = next(each for each in result["ratios"] if each["name"].startswith(DIFFERENT))
    states = (result["step_s"][f"{DIFFERENT}, {state}"] for state in ("with", "without"))
    pairs = zip(*states, strict=True)
    assert line["rounds"] == pytest.approx([one / other for one, other in pairs])
    assert result["engines"]["with"]["num_graphs"] == 0


def test_an_engine_runs_with_what_there_was_before_kept_from_collections(tmp_path: Path) -> None:
    """As in an engine's process."""
    bench = tiny_bench(tmp_path)
    model = bench.model(SCALE.graphs)
    windows = Windows(model, ranks=(SCALE.rank,), count=1, targets=SCALE.targets)
    with bench.engine(StepLoop, model, windows, max_running=1):
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_an_option_that_the_engine_lacks_is_named(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path)
    for variant in (Variant(options=("magic",)), Variant(keywords=("magic",))):
        with pytest.raises(Skipped, match="the engine has no magic"):
            variants(bench, "any", variant)
    with pytest.raises(Skipped, match="only on a GPU"):
        variants(bench, "graphs", Variant(options=("cuda_graphs",)))


def test_part_names_are_those_of_the_parts(tmp_path: Path) -> None:
    for scale in SCALES.values():
        bench = command.Bench(
            scale, torch.device("cpu"), torch.float32, tmp_path, command.Budget(1.0)
        )
        assert {part.name for part in command.parts(bench)} == set(command.part_names(scale))
