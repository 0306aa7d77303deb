"""The budget, resuming and what a report keeps, with parts that take no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchError
from benchmarks.gpu.parts import Budget, Part, Skipped, rounds_in, run_parts
from benchmarks.gpu.record import SCHEMA, Record, report_name

SETTING = {"device": "cpu", "shape": "tiny"}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """Parts that let the clock go on, and a record of which ran."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.ran: list[str] = []

    def part(self, name: str, estimate_s: float, takes_s: float = 0.0) -> Part:
        def run() -> dict[str, Any]:
            self.ran.append(name)
            self.clock.now_s += takes_s
            return {"took": takes_s}

        return Part(name, estimate_s, run)

    def failing(self, name: str, error: Exception) -> Part:
        def run() -> dict[str, Any]:
            self.ran.append(name)
            raise error

        return Part(name, 1, run)

    def run(self, *parts: Part, budget_s: float = 100.0, fresh: bool = False) -> Record:
        record = Record(self.path, SETTING, fresh=fresh)
        budget = Budget(budget_s, self.clock)
        run_parts(parts, record, budget, commit="abc", say=lambda text: None)
        return record


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "made" / "report.json")


def test_a_part_that_would_pass_the_budget_is_left_for_the_next_run(bench: Bench) -> None:
    parts = [bench.part("a", 60, 70), bench.part("b", 31, 5), bench.part("c", 30, 5)]
    record = bench.run(*parts)
    assert bench.ran == ["a", "c"]
    assert "31 s of the 30 s left" in record.skipped["b"]
    report = json.loads(bench.path.read_text())
    assert report["schema"] == SCHEMA and set(report["sections"]) == {"a", "c"}
    assert report["skipped"] == record.skipped
    section = report["sections"]["a"]
    assert section["seconds"] == 70 and section["result"] == {"took": 70}
    assert {"commit", "measured_at", "torch", "triton", "num_cores"} <= set(section)

    record = bench.run(*parts)
    assert bench.ran == ["a", "c", "b"]
    assert not record.skipped and record.is_done("b")


def test_fresh_measures_again(bench: Bench) -> None:
    bench.run(bench.part("a", 1))
    bench.run(bench.part("a", 1))
    assert bench.ran == ["a"]
    bench.run(bench.part("a", 1), fresh=True)
    assert bench.ran == ["a", "a"]


def test_each_section_is_on_disk_before_the_next_part_begins(bench: Bench) -> None:
    def look() -> dict[str, Any]:
        assert "a" in json.loads(bench.path.read_text())["sections"]
        return {}

    assert bench.run(bench.part("a", 1), Part("b", 1, look)).is_done("b")


def test_what_fails_fails_alone_and_is_tried_again(bench: Bench) -> None:
    parts = [bench.failing("a", BenchError("TOO_SLOW", "not done")), bench.part("b", 1)]
    record = bench.run(*parts)
    section = record.sections["a"]
    assert (section["state"], section["reason"]) == ("failed", "TOO_SLOW")
    assert "not done" in section["trace"] and record.result("a") is None
    assert record.is_done("b")
    bench.run(*parts)
    assert bench.ran == ["a", "b", "a"]


def test_a_part_that_cannot_run_here_says_why_and_keeps_what_it_measured(bench: Bench) -> None:
    record = bench.run(bench.failing("a", Skipped("no --peer-lora DIR")), bench.part("b", 1))
    assert record.skipped == {"a": "no --peer-lora DIR"} and "a" not in record.sections
    assert record.is_done("b")


def _not_json(report: dict[str, Any]) -> str:
    return "{"


def _other_schema(report: dict[str, Any]) -> str:
    return json.dumps({**report, "schema": "chorale-gpu-bench/0"})


def _other_device(report: dict[str, Any]) -> str:
    return json.dumps({**report, "device": "NVIDIA H100"})


def _no_sections(report: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in report.items() if key != "sections"})


@pytest.mark.parametrize("change", [_not_json, _other_schema, _other_device, _no_sections])
def test_a_report_of_something_else_is_not_gone_on_with(
    bench: Bench, change: Callable[[dict[str, Any]], str]
) -> None:
    bench.run(bench.part("a", 1))
    bench.path.write_text(change(json.loads(bench.path.read_text())))
    with pytest.raises(BenchError, match="--fresh") as caught:
        Record(bench.path, SETTING)
    assert caught.value.reason == "REPORT_UNUSABLE"
    assert bench.run(bench.part("a", 1), fresh=True).is_done("a")


def test_rounds_fit_the_time_within_bounds() -> None:
    assert rounds_in(35, 10, at_least=2, at_most=9) == 3
    assert rounds_in(1, 10, at_least=2, at_most=9) == 2
    assert rounds_in(500, 10, at_least=2, at_most=9) == 9


def test_dry_runs_are_told_apart_from_figures() -> None:
    assert report_name("NVIDIA H100 80GB HBM3", "real") == "gpu-nvidia-h100-80gb-hbm3.json"
    assert report_name("cpu", "tiny") == "gpu-cpu-tiny.json"
