"""The decoder and the engine over Triton kernels, where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(660)]


def test_in_the_interpreter() -> None:
    """One process: its start takes longer than some of these tests."""
    run_interpreted(
        "tests/dataplane/models/interpreted_decoder.py",
        "tests/dataplane/engine/interpreted_triton.py",
        "tests/dataplane/engine/interpreted_gpu.py",
    )
