"""The Triton kernels that draw tokens and mask logits, compiled for GPUs that are not here."""

from __future__ import annotations

import pytest

from kernels.sampling import triton_mask
from kernels.sampling.triton_sample import BLOCK, OPTIONS, sample_kernel
from tests.kernels.aot import FEW_BYTES, TARGETS, compile_kernel

TYPES = {"fp32": 32, "fp16": 20, "bf16": 16}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_sample_compiles(target: str, dtype: str) -> None:
    built = compile_kernel(
        sample_kernel,
        target,
        {
            "logits_ptr": f"*{dtype}:16",
            "rows_ptr": "*i64:16",
            "temperature_ptr": "*fp32:16",
            "top_k_ptr": "*i64:16",
            "top_p_ptr": "*fp32:16",
            "min_p_ptr": "*fp32:16",
            "uniforms_ptr": "*fp64:16",
            "ids_ptr": "*i64:16",
            "row_stride": "i32:16",
            "vocab": "i32",
            "has_top_k": "i32",
            "has_top_p": "i32",
            "has_min_p": "i32",
        },
        {"NUM_BITS": TYPES[dtype], "BLOCK": BLOCK},
        OPTIONS,
    )
    assert built.shared_bytes <= 16 * 1024 and built.spilled_bytes <= FEW_BYTES, built.registers


@pytest.mark.parametrize("target", TARGETS)
def test_mask_compiles(target: str) -> None:
    built = compile_kernel(
        triton_mask.mask_kernel,
        target,
        {
            "logits_ptr": "*fp32:16",
            "rows_ptr": "*i64:16",
            "bits_ptr": "*i32:16",
            "row_stride": "i32",
            "num_words": "i32",
            "vocab": "i32",
        },
        {"BLOCK": triton_mask.BLOCK},
        triton_mask.OPTIONS,
    )
    assert built.shared_bytes == 0 and built.spilled_bytes <= FEW_BYTES, built.registers
