"""Which lines hold, by a report's sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.bounds import judge, print_judged
from benchmarks.gpu.decode import DIFFERENT
from benchmarks.gpu.record import Record
from benchmarks.gpu.scale import SCALES
from benchmarks.gpu.slora import loss

SCALE = SCALES["real"]


def decode(fraction: float, tax: float, mixed: float) -> dict[str, Any]:
    medians = {
        "tax of 1 adapter": tax,
        "tax of 1 adapter, 1 stream": tax,
        "ranks mixed to the same total rank spread evenly": mixed,
    }
    return {
        "fraction_of_roofline": {DIFFERENT: fraction},
        "ratios": [{"name": name, "median": median} for name, median in medians.items()],
    }


def judged(tmp_path: Path, **results: dict[str, Any]) -> dict[str, bool | None]:
    record = Record(tmp_path / "report.json", {})
    for part, result in results.items():
        section = {"state": "done", "result": result, "commit": "abc"}
        record.put(part.replace("_", "-"), section)
    lines = judge(SCALE, record)
    print_judged(lines)
    return {line["name"]: line["holds"] for line in lines}


def test_every_line_of_the_issue_is_there_and_open_until_measured(tmp_path: Path) -> None:
    lines = judged(tmp_path)
    assert set(lines.values()) == {None}
    words = ["roofline", "tax of 1", "ranks mixed", "2000 adapters to 5", "a peer's", "gpu-check"]
    for word in [*words, "gpu-sanitize", "trickling", "churn"]:
        assert any(word in name for name in lines), word
    for model in ("llama-2-7b", "llama-3-8b"):
        assert sum(name.startswith(f"{model}:") for name in lines) == 4


@pytest.mark.parametrize(
    ("values", "holding"),
    [
        ((0.7, 1.05, 1.1), [True, True, True, True]),
        ((0.69, 1.051, 1.11), [False, False, False, False]),
        ((0.9, 1.2, 1.0), [True, False, False, True]),
    ],
)
def test_decode_lines(
    tmp_path: Path, values: tuple[float, float, float], holding: list[bool]
) -> None:
    lines = judged(tmp_path, decode_llama_3_8b=decode(*values))
    assert [holds for name, holds in lines.items() if name.startswith("llama-3")] == holding
    assert all(holds is None for name, holds in lines.items() if name.startswith("llama-2"))


def test_more_adapters_may_cost_their_bytes_and_two_hundredths() -> None:
    def run(rate: float, adapter_bytes: float, step_bytes: float) -> list[dict[str, float]]:
        figures = {"requests_per_s": rate, "step_adapter_bytes": adapter_bytes}
        return [{**figures, "step_bytes": step_bytes}] * 2

    lost = loss({"5": run(10.0, 1.0, 100.0), "2000": run(8.0, 11.0, 111.0)}, 5, 2000)
    assert lost["slower"] == pytest.approx(1.25)
    assert lost["extra_bytes_share"] == pytest.approx(0.1)
    assert lost["may_be_slower"] == pytest.approx(1.12)


@pytest.mark.parametrize(("slower", "holds"), [(1.12, True), (1.13, False)])
def test_slora_lines(tmp_path: Path, slower: float, holds: bool) -> None:
    lines = judged(tmp_path, slora_s2={"slower": slower, "may_be_slower": 1.12})
    assert [value for name, value in lines.items() if "slora-s2" in name] == [holds]


def test_interference_lines(tmp_path: Path) -> None:
    def case(ratio: float) -> dict[str, Any]:
        return {"ratios": [{"median": ratio}]}

    lines = judged(tmp_path, interference={"trickle": case(1.05), "churn": case(1.06)})
    found = [holds for name, holds in lines.items() if name.startswith("interference")]
    assert found == [True, False]


def test_the_worst_model_counts_against_a_peer(tmp_path: Path) -> None:
    def cases(*ratios: float) -> dict[str, Any]:
        equal = [{"kind": "equal", "ratio": ratio} for ratio in ratios]
        return {"cases": [*equal, {"kind": "mixed", "ratio": 3.0}]}

    def line(*ratios: float) -> bool | None:
        found = judged(tmp_path, peer_lora=cases(*ratios))
        return next(holds for name, holds in found.items() if "a peer's" in name)

    assert line(0.5, 0.8) is True
    assert line(0.5, 0.81) is False


def test_checks_that_left_something_out_do_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = judged(
        tmp_path,
        check={"num_failed": 0, "num_left_out": 0},
        memcheck={"num_failed": 0, "num_left_out": 1},
    )
    found = {name.partition(":")[0]: holds for name, holds in lines.items() if "gpu-" in name}
    assert found == {"gpu-check": True, "gpu-sanitize": False}
    printed = capsys.readouterr().out
    assert "DOES NOT HOLD" in printed and "not measured: not run" in printed


def test_why_a_line_is_open(tmp_path: Path) -> None:
    record = Record(tmp_path / "report.json", {})
    record.skip("peer-lora", "no --peer-lora DIR")
    record.put("slora-s1", {"state": "failed", "reason": "TOO_SLOW", "message": "not done"})
    whys = {line["part"]: line["why_not_measured"] for line in judge(SCALE, record)}
    assert whys["peer-lora"] == "no --peer-lora DIR"
    assert whys["slora-s1"] == "failed: TOO_SLOW: not done"
    assert whys["slora-s2"] == "not run"
