"""A small soak, and that it notices what it is there for."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchError
from benchmarks.soak.__main__ import soak
from benchmarks.soak.leaks import MAX_TABLE, table_sizes
from dataplane.engine.scheduler import Scheduler
from dataplane.lora.supply import AdapterSupply


@pytest.fixture(autouse=True)
def out_of_sight() -> Iterator[None]:
    """What other tests have left in this process, all of which a soak looks through at its end."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return soak(
        folder,
        **{
            "num_requests": 250,
            "num_adapters": 6,
            "num_prompts": 2,
            "in_flight": 64,
            "seed": 0,
            "num_threads": 1,
            "ranks": (1, 8, 64),
            "pool_bytes": 2 << 20,
            "check_every": 1,
            **changes,
        },
    )


def test_mixed_requests_get_their_own_answers_and_leave_nothing(tmp_path: Path) -> None:
    report = run(tmp_path)
    assert sum(report["ended"].values()) == 250
    assert report["ended"]["completed"] > 100 and report["ended"]["cancelled"]
    assert report["num_prefix_hit_tokens"]
    assert report["num_checked_tokens"] > 1000
    assert not any(path.startswith("_sequences") for path in report["tables"])
    json.dumps(report)


def test_another_adapters_answer_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = AdapterSupply.acquire
    last: list[Any] = []

    def mixing_up(supply: AdapterSupply, digest: str) -> None:
        """In the tight pool, weights may be those of the adapter that was used before."""
        acquire(supply, digest)
        resident = supply.resident.get(digest)
        assert resident is not None
        if supply._num_pages < 1000:
            own = resident.pages, resident.layout
            if last:
                resident.pages, resident.layout = last.pop()
            last.append(own)

    monkeypatch.setattr(AdapterSupply, "acquire", mixing_up)
    with pytest.raises(BenchError) as caught:
        run(tmp_path)
    assert caught.value.reason == "OUTPUT_WRONG"


def test_a_sequence_that_is_not_forgotten_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, kept = Scheduler.remove, []

    def keeping(scheduler: Scheduler, sequence: Any, now_s: float, *, ruined: bool = False) -> None:
        remove(scheduler, sequence, now_s, ruined=ruined)
        if not kept:
            kept.append(sequence)

    monkeypatch.setattr(Scheduler, "remove", keeping)
    monkeypatch.setattr("benchmarks.soak.run._SETTLE_S", 0.2)
    with pytest.raises(BenchError, match="Sequence") as caught:
        run(tmp_path, num_requests=20, num_adapters=1, ranks=(4,))
    assert caught.value.reason == "OBJECTS_LEFT"


def test_a_table_that_grows_without_bound_is_noticed() -> None:
    class Part:
        __module__ = "dataplane.part"

        def __init__(self, size: int) -> None:
            self.handles = dict.fromkeys(range(size))

    class Whole:
        def __init__(self, size: int) -> None:
            self._part = Part(size)
            self.empty: list[int] = []

    assert table_sizes(Whole(MAX_TABLE)) == {"_part.handles": MAX_TABLE}
    with pytest.raises(BenchError, match=r"_part\.handles"):
        table_sizes(Whole(MAX_TABLE + 1))
