"""Triton kernels where there is no GPU: interpreted, in one process, whose
start takes longer than many of these tests.
"""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import run_interpreted

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(660)]

KERNELS = [
    "tests/kernels/test_attention_triton.py",
    "tests/kernels/test_kv_triton.py",
    "tests/kernels/test_fused_triton.py",
    "tests/kernels/test_vocabulary.py",
    "tests/kernels/interpreted_lora.py",
    "tests/kernels/test_lora_extras.py",
    "tests/kernels/test_quantized.py",
    "tests/kernels/interpreted_quantized.py",
    "tests/kernels/test_experts.py",
    "tests/kernels/test_expert_lora.py",
    "tests/kernels/interpreted_experts.py",
    "tests/kernels/test_sample.py",
    "tests/kernels/test_mask.py",
    "tests/benchmarks/interpreted_tune_cases.py",
]


def test_kernels() -> None:
    run_interpreted(*KERNELS)
