"""The Triton kernels of mixtures of experts where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted


@pytest.mark.timeout(300)
def test_mixtures_of_experts_in_the_interpreter() -> None:
    run_interpreted("tests/kernels/test_experts.py", "tests/kernels/interpreted_experts.py")
