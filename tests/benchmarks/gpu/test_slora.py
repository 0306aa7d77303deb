"""The scaled generator of S-LoRA's settings."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu.scale import SCALES
from benchmarks.gpu.slora import fitting_divisor, in_turn, lengths_of, requests_of
from dataplane.channel import Adapter

PLAN = SCALES["real"].slora


def test_lengths_are_divided_until_the_time_is_enough() -> None:
    # 2,000 requests of 259.5 tokens, 128 at a time: 4,055 steps of 10 ms.
    assert fitting_divisor(PLAN, 2000, 0.01, 41.0) == 1
    assert fitting_divisor(PLAN, 2000, 0.01, 40.0) == 2
    assert fitting_divisor(PLAN, 2000, 0.01, 10.5) == 4
    assert fitting_divisor(PLAN, 2000, 0.01, 0.001) == PLAN.divisors[-1]
    assert lengths_of(PLAN, 1) == (8, 512) and lengths_of(PLAN, 4) == (2, 128)
    assert lengths_of(replace(PLAN, lengths=(4, 5)), 16) == (2, 3)


def test_all_numbers_of_adapters_serve_the_same_requests() -> None:
    requests = requests_of(PLAN, 2000, 4)
    assert requests == requests_of(PLAN, 2000, 4)
    for values in zip(*requests, strict=True):
        assert min(values) == 2 and max(values) == 127
        assert 60 < sum(values) / len(values) < 69


def test_every_adapter_has_its_turn_and_none_two_before() -> None:
    adapters = [Adapter(f"{i}", "", f"{i}") for i in range(7)]
    drawn = [int(each.digest) for each in in_turn(adapters, 20)]
    assert set(drawn[:7]) == set(drawn[7:14]) == set(range(7))
    assert drawn[:7] != drawn[7:14] != list(range(7))
    assert len(set(drawn[14:])) == 6
