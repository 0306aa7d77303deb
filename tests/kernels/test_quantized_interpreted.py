"""The Triton kernels of quantised matrices where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted


@pytest.mark.timeout(300)
def test_quantized_matrices_in_the_interpreter() -> None:
    run_interpreted("tests/kernels/test_quantized.py", "tests/kernels/interpreted_quantized.py")
