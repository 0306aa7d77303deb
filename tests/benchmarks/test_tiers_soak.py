"""A small run of the soak; it raises at the first wrong answer, passed bound or leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import tiers_soak
from benchmarks.errors import BenchError
from dataplane.lora.resident import ResidentAdapters
from storage import loader

TIERS = tiers_soak.Tiers(pool=4, host=6, disk=12)


def test_many_adapters_through_small_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A disk that lags is waited for: on a busy machine hardly anything would come to be written.
    monkeypatch.setattr(loader, "_WRITE_PATIENCE_S", 60.0)
    report = tiers_soak.soak(tmp_path, num_adapters=40, num_touches=120, concurrency=6, tiers=TIERS)
    assert report["right"] + report["aborted"] == 120 and report["aborted"]
    assert report["distinct_touched"] == 40
    for tier in ("host", "disk"):
        assert report[tier]["num_evictions"] > 0 and report[tier]["num_hits"] > 0
    assert report["disk"]["num_damaged"] == 0
    assert 0 < report["read_back"] <= report["disk"]["num_entries"]


def test_it_notices_another_adapters_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tiers_soak._alone

    def swapped(*arguments: Any, **options: Any) -> dict[str, list[int]]:
        right = alone(*arguments, **options)
        a, b = sorted(right, key=lambda each: right[each])[:: len(right) - 1]
        right[a], right[b] = right[b], right[a]
        return right

    monkeypatch.setattr(tiers_soak, "_alone", swapped)
    with pytest.raises(BenchError, match="alone"):
        tiers_soak.soak(tmp_path, num_adapters=8, num_touches=8, concurrency=2, tiers=TIERS)


def test_it_notices_a_leaked_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    install = ResidentAdapters.install

    def leaking(self: ResidentAdapters, host: Any) -> Any:
        kept.append(host)
        return install(self, host)

    monkeypatch.setattr(ResidentAdapters, "install", leaking)
    monkeypatch.setattr(tiers_soak, "_ABORTED", 0.0)
    with pytest.raises(BenchError, match="alive"):
        tiers_soak.soak(tmp_path, num_adapters=20, num_touches=20, concurrency=4, tiers=TIERS)
