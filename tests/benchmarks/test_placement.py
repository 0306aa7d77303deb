"""The simulation of placement: what it compares differs where it should."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.placement import __main__ as bench
from benchmarks.placement.fleet import Mode, run

COSTS = bench.COSTS["slow steps"]


def figures(mode: Mode, rate: float) -> dict[str, Any]:
    requests = bench._requests(bench.OVERLOAD_ADAPTERS, rate, 40.0, 8.0, seed=1)
    policy = bench._UNBOUNDED
    return run(mode, requests, COSTS, num_planes=1, slo_s=bench.SLO_S, policy=policy)


def test_under_overload_those_who_are_told_no_make_room_for_others() -> None:
    nobody, planes, admission = (figures(mode, rate=3.0) for mode in bench.OVERLOAD_MODES)
    for refusing in (planes, admission):
        assert refusing["attainment"] > nobody["attainment"] + 0.1
        assert refusing["late_share_of_served"] < 0.05 < nobody["late_share_of_served"]
    assert nobody["told_no_after_s"] is None and nobody["num_served"] == nobody["num_requests"]
    assert admission["told_no_after_s"] < planes["told_no_after_s"] <= bench.SLO_S + 0.1
    assert 0.7 < admission["expected_over_true"]["median"] < 1.4


@pytest.mark.parametrize("mode", bench.OVERLOAD_MODES)
def test_nobody_is_refused_without_need(mode: Mode) -> None:
    found = figures(mode, rate=0.2)
    assert (found["attainment"], found["num_served"]) == (1.0, found["num_requests"])
