"""The Triton kernel that draws tokens: interpreted, and compiled for GPUs that are not here."""

from __future__ import annotations

import pytest

from kernels.sampling.triton_draw import BLOCK, OPTIONS, draw_kernel
from tests.kernels.aot import FEW_BYTES, TARGETS, compile_kernel
from tests.kernels.interpreter import run_interpreted


@pytest.mark.timeout(300)
def test_draws_in_the_interpreter() -> None:
    run_interpreted("tests/kernels/test_sampling.py")


@pytest.mark.parametrize("target", TARGETS)
def test_draw_compiles(target: str) -> None:
    built = compile_kernel(
        draw_kernel,
        target,
        {"probabilities_ptr": "*fp32:16", "uniforms_ptr": "*fp64:16", "ids_ptr": "*i64:16"}
        | {"row_stride": "i32:16", "vocab": "i32"},
        {"BLOCK": BLOCK},
        OPTIONS,
    )
    assert built.shared_bytes <= 4096 and built.spilled_bytes <= FEW_BYTES, built.registers
