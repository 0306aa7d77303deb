"""The decoder on Triton's kernels, where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted


@pytest.mark.timeout(300)
def test_decoder_in_the_interpreter() -> None:
    run_interpreted("tests/dataplane/models/interpreted_decoder.py")
