from __future__ import annotations

import pytest

from benchmarks.load.metrics import distribution, summary
from benchmarks.load.records import Record
from benchmarks.load.run import ratios
from benchmarks.rounds import Ratio, interleaved, judged


def record(index: int, due_s: float, token_s: list[float], **changes: object) -> Record:
    made = Record(index, "a", 10, len(token_s), due_s, sent_s=due_s)
    made.token_s, made.token_counts = token_s, [1] * len(token_s)
    made.done_s = token_s[-1] if token_s else None
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_figures_of_a_phase() -> None:
    records = [
        record(0, 0.0, [0.1, 0.2, 0.3]),
        record(1, 1.0, [1.5, 1.6, 2.0]),
        record(2, 1.0, [], error="QUEUE_FULL", error_message="4096 wait"),
    ]
    figures = summary(records, ttft_objective_s=0.3)
    assert (figures["num_requests"], figures["num_completed"], figures["num_failed"]) == (3, 2, 1)
    assert figures["elapsed_s"] == 2.0
    assert figures["output_tokens_per_s"] == 3.0
    assert figures["ttft_s"]["mean"] == pytest.approx(0.3)
    assert figures["latency_s"]["max"] == pytest.approx(1.0)
    assert figures["gap_s"]["max"] == pytest.approx(0.4)
    assert figures["time_per_token_s"]["max"] == pytest.approx(0.25)
    assert figures["errors"] == {"QUEUE_FULL": 1}
    assert figures["error_examples"] == {"QUEUE_FULL": "4096 wait"}
    # One of three, the failed one counted against it.
    assert figures["attainment"] == pytest.approx(1 / 3)
    assert figures["goodput_requests_per_s"] == pytest.approx(0.5)
    assert figures["goodput_tokens_per_s"] == pytest.approx(1.5)


def test_tokens_of_failed_requests_count_as_work_but_not_as_goodput() -> None:
    failed = record(0, 0.0, [0.1, 0.2], error="ENGINE_LOST", done_s=None)
    figures = summary([failed, record(1, 0.0, [0.1, 1.0])], ttft_objective_s=1.0)
    assert figures["num_output_tokens"] == 4
    assert figures["goodput_tokens_per_s"] == pytest.approx(2.0)
    assert figures["attainment"] == 0.5


def test_answers_of_another_length_than_asked_for_are_told() -> None:
    figures = summary([record(0, 0.0, [0.1, 0.2], num_wanted_tokens=5)], ttft_objective_s=None)
    assert figures["num_short"] == 1
    assert "attainment" not in figures


def test_a_chunk_of_several_tokens_counts_as_so_many() -> None:
    made = record(0, 0.0, [0.1, 0.5], token_counts=[1, 4])
    assert made.num_tokens == 5
    assert made.gaps_s == pytest.approx([0.4])
    assert made.time_per_token_s == pytest.approx(0.1)


def test_no_requests_and_no_values_are_no_figures() -> None:
    figures = summary([], ttft_objective_s=1.0)
    assert figures["output_tokens_per_s"] == 0.0 and figures["ttft_s"] is None
    assert distribution([None, None]) is None
    assert distribution([1.0, None, 3.0]) is not None


def test_oversubscription_is_the_quotient_of_medians_over_the_rounds() -> None:
    def phase(name: str, p50: float) -> dict[str, object]:
        figures = {"p50": p50, "p99": 2 * p50}
        return {"name": name, "summary": {"ttft_s": figures, "latency_s": figures}}

    phases = [phase("fits", 1.0), phase("over", 3.0), phase("fits", 2.0), phase("over", 3.0)]
    found = ratios(phases)
    assert found["ttft_s_p50_over_to_fits"] == pytest.approx(2.0)
    assert ratios(phases[:1]) == {}


def test_cases_take_turns_and_change_places() -> None:
    order: list[str] = []

    def case(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = interleaved({name: lambda n=name: case(n) for name in "abc"}, rounds=3)
    assert order == [*"abc", *"bca", *"cab"]
    assert values == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ({}, None),
        ({"at_least": 0.5}, True),
        ({"at_least": 0.51}, False),
        ({"at_most": 0.5}, True),
        ({"at_most": 0.49}, False),
        ({"at_least": 0.6, "at_most": 0.9}, False),
    ],
)
def test_a_ratio_is_the_median_of_each_rounds_own(
    bounds: dict[str, float], held: bool | None
) -> None:
    values = {"x": [1.0, 3.0, 100.0], "y": [2.0, 3.0, 1000.0]}
    (line,) = judged([Ratio("x to y", "x", "y", **bounds)], values)
    assert line["rounds"] == pytest.approx([0.5, 1.0, 0.1])
    assert line["median"] == pytest.approx(0.5) and line["held"] is held


def test_a_ratio_to_a_roofline_is_scaled() -> None:
    (line,) = judged([Ratio("x", "x", "y", scale=2.0)], {"x": [1.0], "y": [4.0]})
    assert line["median"] == pytest.approx(0.5)
