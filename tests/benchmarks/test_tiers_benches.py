"""The benchmarks of cold starts and of interference do what they say, on a tiny model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cold_start, interference

COMMON: dict[str, Any] = {
    "shape": "tiny",
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "rounds": 2,
}


def test_cold_start_measures_each_tier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = Namespace(**COMMON, rank=4, prompt_tokens=8)
    report = cold_start.measure(arguments, tmp_path)
    assert all(len(report["first_token_s"][case]) == 2 for case in ("warm", "host", "disk"))
    parts = report["parts_s"]
    assert set(parts["disk"]) == set(cold_start.PARTS)
    assert all(min(parts["disk"][part]) > 0 for part in ("read", "parse", "convert"))
    for case in ("host", "disk"):
        moved = [sum(pair) for pair in zip(parts[case]["copy"], parts[case]["wait"], strict=True)]
        assert min(moved) > 0, "the adapter was copied into the pool"
    assert parts["warm"] == {"copy": [0.0, 0.0], "wait": [0.0, 0.0]}
    cold_start.show(report)
    assert "from host memory to warm" in capsys.readouterr().out


def test_interference_measures_gaps_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = Namespace(
        **COMMON,
        cases=["trickle", "churn"],
        streams=2,
        megabytes=1,
        trickle_s=0.4,
        churn_s=0.4,
        rank=4,
        adapters=9,
        fits=3,
    )
    report = interference.run(arguments, tmp_path)
    trickle, churn = report["results"]["trickle"], report["results"]["churn"]
    assert min(trickle["first_token_after_s"]) >= 0.4, "the source gives it away slowly"
    assert 0 < trickle["file_bytes"] <= 1 << 20
    assert churn["requests"]["churn"] > 9 and churn["requests"]["one adapter"] > 9
    for result, case, base in (
        (trickle, "trickle", "quiet"),
        (churn, "churn", "one adapter"),
    ):
        for gaps in result["gap_s"].values():
            assert len(gaps["p99_of_windows"]) == 2 and gaps["num_gaps"] > 40
            assert 0 < gaps["p50"] <= gaps["p99"] <= gaps["worst"]
        assert result["ratios"][0]["rounds"] == [
            result["gap_s"][case]["p99"] / result["gap_s"][base]["p99"]
        ]
    interference.show(report)
    assert "P99 gap beside churn" in capsys.readouterr().out
