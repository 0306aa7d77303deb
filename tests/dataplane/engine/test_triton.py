"""The engine over Triton kernels, where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted


@pytest.mark.timeout(300)
def test_engine_in_the_interpreter() -> None:
    run_interpreted("tests/dataplane/engine/interpreted_triton.py")


@pytest.mark.timeout(300)
def test_what_the_host_does_for_a_gpu() -> None:
    run_interpreted("tests/dataplane/engine/interpreted_gpu.py")
