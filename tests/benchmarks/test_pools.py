"""The ways to share a pool's bytes that benchmarks.pools compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.errors import BenchError
from benchmarks.load.records import Record
from benchmarks.models import ALL_LINEAR
from benchmarks.pools import __main__ as pools
from benchmarks.pools.drive import Objective
from benchmarks.pools.policies import Policy
from benchmarks.pools.rig import Rig
from benchmarks.pools.simulated import Costs
from benchmarks.pools.workload import Mix, Shift
from dataplane.cost_model import CostModel
from dataplane.engine.engine import Engine

NUM_PAGES = 140
RANKS = (8, 16, 32, 64)  # 10, 19, 37 and 73 pages
MANY = Mix("adapter-heavy", 8, (8, 24), (8, 24))
FEW = Mix("KV-heavy", 1, (20, 60), (40, 100))
PHASE_S = 4.0


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(
        tmp_path_factory.mktemp("pools"),
        "tiny",
        [RANKS[index % 4] for index in range(8)],
        targets=ALL_LINEAR,
        num_pages=NUM_PAGES,
        max_running=32,
        dtype="float32",
        device="cpu",
        num_threads=1,
    )


@pytest.fixture
def costs() -> Costs:
    steps = CostModel()
    for number in (1, 2, 4, 8, 16):
        steps.observe_step(0.01 + 0.0005 * number, num_prefill=0, num_decode=number)
        steps.observe_step(0.01 + 0.0002 * number, num_prefill=number, num_decode=0)
    return Costs(steps, load_s=0.002, copy_s_per_byte=1e-9)


Look = Callable[[dict[str, int]], None]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Look]]:
    """Called after every step with the pages of each owner, once the books are proven."""
    step = Engine.step
    called: list[Look] = []

    def looking(engine: Engine) -> object:
        result = step(engine)
        report = engine.inspect(0)
        assert not report.problem
        counts: dict[str, int] = {}
        for owner in filter(None, report.owners):
            counts[owner] = counts.get(owner, 0) + 1
        for look in called:
            look(counts)
        return result

    monkeypatch.setattr(Engine, "step", looking)
    yield called


def run(rig: Rig, policy: Policy, costs: Costs | None, rate: float = 6.0) -> list[Record]:
    shift = Shift(((FEW, 1.0), (MANY, rate)), PHASE_S, alpha=1.0, cv=1.0)
    phases = shift.requests(list(rig.adapters), 1)
    result = rig.run(
        policy,
        [each for phase in phases for each in phase.requests],
        Objective(2.0),
        longest=FEW.longest,
        phase_s=PHASE_S,
        num_phases=2,
        costs=costs,
        seed=1,
    )
    assert result.usage[-1].report()["mean_streams"] > 0
    return result.records


def adapter_pages(counts: dict[str, int]) -> list[int]:
    return [pages for owner, pages in counts.items() if owner.startswith("adapter:")]


def test_one_pool_gives_adapters_and_kv_what_each_needs(
    rig: Rig, costs: Costs, looks: list[Look]
) -> None:
    shares: list[int] = []
    looks.append(lambda counts: shares.append(sum(adapter_pages(counts))))
    records = run(rig, Policy("one pool"), costs)
    assert sum(record.completed for record in records) > 0.9 * len(records)
    assert min(shares) <= 10 and max(shares) > 110  # of 140


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_split_keeps_to_its_sides(
    rig: Rig, costs: Costs, looks: list[Look], share: float
) -> None:
    adapters: list[int] = []
    blocks: list[int] = []
    looks.append(lambda counts: adapters.append(sum(adapter_pages(counts))))
    looks.append(lambda counts: blocks.append(sum(counts.values()) - sum(adapter_pages(counts))))
    records = run(rig, Policy("split", share), costs, rate=12.0)
    limit = round(share * NUM_PAGES)
    assert 0.8 * limit < max(adapters) <= limit
    assert 0.8 * (NUM_PAGES - limit) < max(blocks) <= NUM_PAGES - limit
    refused = {record.adapter for record in records if record.error == "ADAPTER_TOO_LARGE"}
    # 42 pages hold no adapter of rank 64, 84 hold each.
    assert refused == ({"a003", "a007"} if share == 0.3 else set())
    assert sum(record.completed for record in records) > len(records) // 4


def test_a_slot_costs_as_much_as_the_largest_adapter(
    rig: Rig, costs: Costs, looks: list[Look]
) -> None:
    numbers: list[int] = []
    blocks: list[int] = []
    looks.append(lambda counts: numbers.append(len(adapter_pages(counts))))
    looks.append(lambda counts: blocks.append(sum(counts.values()) - sum(adapter_pages(counts))))
    records = run(rig, Policy("slots", slots=1), costs)
    assert max(numbers) == 1 and max(blocks) <= NUM_PAGES - max(rig.pages.values())
    assert any(record.completed for record in records)
    with pytest.raises(BenchError) as caught:
        run(rig, Policy("slots", slots=2), costs)
    assert caught.value.reason == "POLICY_TOO_SMALL"


def test_simulated_time_is_what_the_costs_say(rig: Rig, costs: Costs) -> None:
    shift = Shift(((Mix("one", 1, (16, 17), (11, 12)), 0.001),), 1000.0, alpha=1.0, cv=1.0)
    (phase,) = shift.requests(list(rig.adapters), 0)
    arguments = {"longest": 27, "phase_s": 1000.0, "num_phases": 1, "seed": 0}
    policy = Policy("one pool")
    (record,) = rig.run(policy, phase.requests, Objective(9.0), costs=costs, **arguments).records
    assert record.ttft_s == pytest.approx(0.002 + costs.steps.prefill_s(16, 512), rel=0.1)
    assert record.token_s[-1] - record.token_s[0] == pytest.approx(10 * costs.steps.step_s(1))


def test_the_command_measures_and_judges(tmp_path: Path) -> None:
    given = ["--shape=tiny", "--pages=140", "--adapters=4", "--few=1", "--phase=0.3", "--rounds=1"]
    given += ["--shares", "0.1", "0.6", "--slots", "1", "2", "--dtype=float32", "--device=cpu"]
    given += ["--long", "8:16", "40:80", "--short", "8:16", "4:8", "--time=real", "--threads=1"]
    given += ["--ranks", "8", "16", "32", "64"]
    report = pools.measure(pools.parse(given), tmp_path)
    assert set(report["runs"]) == {"one pool", "10% for adapters", "60% for adapters", "1 slots"}
    assert set(report["cannot_serve"]) == {"2 slots"}
    assert len(report["measured_costs"]["steps"]) == 16
    lines = {line["name"]: line for line in report["ratios"]}
    line = lines["attainment: one pool to LoRAX's share, 10% for adapters"]
    (one,), (lorax,) = report["runs"]["one pool"], report["runs"]["10% for adapters"]
    # On a slow machine nothing may come in time.
    attained = [max(run["whole"]["attainment"], 1e-9) for run in (one, lorax)]
    assert line["median"] == pytest.approx(attained[0] / attained[1])
    assert line["at_least"] == 1.5
    json.dumps(report)


def test_a_promise_holds_by_throughput_or_by_attainment() -> None:
    def runs(attainment: float, rate: float) -> list[dict[str, dict[str, float]]]:
        return [{"whole": {**dict.fromkeys(pools.METRICS, rate), "attainment": attainment}}]

    measured = {
        "one pool": runs(0.9, 130.0),
        "10% for adapters": runs(0.5, 90.0),
        "40% for adapters": runs(0.6, 95.0),
        "60% for adapters": runs(0.7, 80.0),
        "1 slots": runs(0.8, 100.0),
    }
    held = pools.promises(pools.ratios(measured))
    assert held == {
        # The best split by attainment is not the best by throughput.
        "the best split": ["goodput_tokens_per_s", "output_tokens_per_s"],
        "LoRAX's share": ["attainment"],
        "the best fixed slots": [],
    }
