"""The Triton kernels of attention, KV writes, norms, activations and adapters' rows of the
vocabulary where there is no GPU."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted

pytestmark = pytest.mark.timeout(300)


def test_attention_in_the_interpreter() -> None:
    run_interpreted("tests/kernels/test_attention_triton.py")


def test_kv_writes_norms_and_activations_in_the_interpreter() -> None:
    run_interpreted(
        "tests/kernels/test_kv_triton.py",
        "tests/kernels/test_fused_triton.py",
        "tests/kernels/test_vocabulary.py",
    )
