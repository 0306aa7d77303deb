"""How late a step is scheduled."""

from __future__ import annotations

import pytest

from dataplane.cost_model import CostModel
from dataplane.engine.patience import Patience


def test_a_step_is_put_off_until_shortly_before_the_one_ahead_ends() -> None:
    costs = CostModel()
    patience = Patience(costs)
    assert patience.left_s(0.0) == 0.0
    patience.launched(num_prefill=0, num_decode=4, now_s=10.0)
    assert patience.left_s(10.0) == 0.0  # nobody knows how long it takes
    patience.collected(10.05)
    costs.observe_step(0.05, num_prefill=0, num_decode=4)
    costs.observe_step(0.25, num_prefill=100, num_decode=4)
    patience.host_took(0.004)
    patience.launched(num_prefill=0, num_decode=4, now_s=11.0)
    assert patience.left_s(11.0) == pytest.approx(0.05 - 0.008 - 0.001)
    assert patience.left_s(11.03) == pytest.approx(0.011)
    assert patience.left_s(11.049) == 0.0
    patience.launched(num_prefill=100, num_decode=4, now_s=11.045)  # behind the other one
    assert patience.left_s(11.05) == pytest.approx(0.25 - 0.009)
    patience.collected(11.06)
    assert patience.left_s(11.06) == pytest.approx(0.25 - 0.009)
