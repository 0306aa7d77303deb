"""Estimates follow what was observed, and promise nothing before."""

from __future__ import annotations

import random

import pytest

from dataplane.cost_model import CostModel


def test_nothing_costs_anything_before_it_was_measured() -> None:
    costs = CostModel()
    assert costs.step_s(32) == costs.prefill_s(1000, 100) == costs.load_s("disk") == 0.0
    assert costs.prefill_tokens_per_s == 0.0
    # But things in the pool can be compared.
    assert costs.recompute_s(100) > 0
    assert costs.reload_s("host", 10**6) < costs.reload_s("disk", 10**6)
    assert costs.reload_s("disk", 10**6) < costs.reload_s("source", 10**6)


def test_decode_steps_are_learnt_as_a_line_and_prefill_beside_them() -> None:
    costs = CostModel()
    generator = random.Random(1)
    for _ in range(300):
        rows = generator.randrange(1, 33)
        costs.observe_step(0.02 + 0.0005 * rows, num_prefill=0, num_decode=rows)
        tokens = generator.randrange(10, 200)
        costs.observe_step(
            0.02 + 0.0005 * rows + 0.0003 * tokens, num_prefill=tokens, num_decode=rows
        )
    for rows in (1, 16, 32, 48):
        assert costs.step_s(rows) == pytest.approx(0.02 + 0.0005 * rows, rel=0.01)
    assert costs.prefill_s(150, 512) == pytest.approx(0.045, rel=0.01)
    assert costs.prefill_s(450, 150) == pytest.approx(3 * 0.045, rel=0.01)
    assert costs.prefill_tokens_per_s == pytest.approx(1 / 0.0003, rel=0.01)


def test_prefill_alone_bears_the_whole_step() -> None:
    costs = CostModel()
    for rows in range(1, 33):
        costs.observe_step(0.02 + 0.0005 * rows, num_prefill=0, num_decode=rows)
    for tokens in (50, 100, 150) * 5:
        costs.observe_step(0.02 + 0.0003 * tokens, num_prefill=tokens, num_decode=0)
    assert costs.prefill_s(100, 512) == pytest.approx(0.05, rel=0.01)
    assert costs.prefill_s(10, 512) == pytest.approx(0.023, rel=0.01)


def test_a_machine_that_slows_down_is_followed() -> None:
    costs = CostModel()
    for _ in range(500):
        costs.observe_step(0.02, num_prefill=0, num_decode=8)
    for _ in range(200):
        costs.observe_step(0.06, num_prefill=0, num_decode=8)
    assert costs.step_s(8) == pytest.approx(0.06, rel=0.05)


def test_no_estimate_is_negative() -> None:
    costs = CostModel()
    generator = random.Random(2)
    for _ in range(200):  # larger batches happened to be faster
        rows = generator.randrange(1, 33)
        costs.observe_step(0.05 - 0.001 * rows, num_prefill=0, num_decode=rows)
        costs.observe_step(0.001, num_prefill=rows, num_decode=rows)
    assert all(costs.step_s(rows) >= 0 for rows in range(100))
    assert all(costs.prefill_s(tokens, 64) >= 0 for tokens in range(200))


def test_loads_are_learnt_by_tier() -> None:
    costs = CostModel()
    for _ in range(5):
        costs.observe_load("disk", 0.2, 1_000_000)
    assert costs.load_s("disk") == pytest.approx(0.2)
    assert costs.load_s("source") == 0.0
    assert costs.reload_s("disk", 2_000_000) == pytest.approx(0.4)
    # Unmeasured: at least what the faster tier takes.
    assert costs.reload_s("source", 2_000_000) == pytest.approx(0.4)


def test_what_bringing_an_adapter_into_the_pool_takes() -> None:
    """By bytes of its weights file, of which each is two in the pool here."""
    costs = CostModel()
    assert costs.pool_line("disk") is None and not costs.knows_steps
    for megabytes in (1, 4, 10):
        weights_bytes = megabytes * 10**6
        seconds = 0.1 + weights_bytes * 1e-8
        costs.observe_load("disk", seconds, 2 * weights_bytes, weights_bytes)
        costs.observe_copy(0.01 + 2 * weights_bytes * 1e-9, 2 * weights_bytes)
    assert costs.pool_line("disk") == pytest.approx((0.11, 1.2e-8), rel=0.01)
    assert costs.pool_line("source") is None
    costs.doubt("disk")
    costs.observe_load("disk", 5.0, 100, 100)
    assert costs.pool_line("disk") == pytest.approx((5.01, 0.2e-8), rel=0.01)


def test_steps_are_known_once_both_parts_were_measured() -> None:
    costs = CostModel()
    costs.observe_step(0.02, num_prefill=0, num_decode=1)
    assert not costs.knows_steps
    for tokens in (50, 100, 150):
        costs.observe_step(0.03 + tokens * 1e-4, num_prefill=tokens, num_decode=0)
    assert costs.knows_steps
    assert costs.prefill_line == pytest.approx((0.03, 1e-4), rel=0.01)
