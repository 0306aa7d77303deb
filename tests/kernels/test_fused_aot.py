"""Norm, activation and rope kernels with every tuned setting, compiled for GPUs that this machine
lacks. They keep nothing in shared memory but what a reduction passes between warps."""

from __future__ import annotations

import pytest

from kernels.fused.triton_activation import (
    activation_constants,
    gated_activation_kernel,
    plain_activation_kernel,
    plain_constants,
)
from kernels.fused.triton_norm import norm_case, norm_constants, norm_kernel
from kernels.gpu.tuning import launch_options, tuned
from kernels.kv.triton_qk_norm import OPTIONS, qk_constants, qk_inverse_kernel
from kernels.kv.triton_rope import NormKind, rope_case, rope_constants, rope_write_kernel
from tests.kernels.aot import FEW_BYTES, TARGETS, Built, compile_kernel

REDUCTION_BYTES = 4096


def check(built: Built) -> None:
    assert built.shared_bytes <= REDUCTION_BYTES
    assert built.spilled_bytes <= FEW_BYTES, built.registers


@pytest.mark.parametrize(("has_delta", "is_centred"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("features", [1000, 2048, 4096, 8192, 16384, 32768])
@pytest.mark.parametrize("target", TARGETS)
def test_norm_compiles(target: str, features: int, has_delta: bool, is_centred: bool) -> None:
    settings = tuned("fused", target, "rms_norm", norm_case(features))
    check(
        compile_kernel(
            norm_kernel,
            target,
            dict.fromkeys(
                ("x_ptr", "residual_ptr", "weight_ptr", "delta_ptr", "out_ptr"), "*bf16:16"
            )
            | {"x_stride": "i32:16", "eps": "fp32"},
            norm_constants(features, True, has_delta, is_centred),
            launch_options(settings),
        )
    )


@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("target", TARGETS)
def test_activation_compiles(target: str, activation: str, has_delta: bool) -> None:
    settings = tuned("fused", target, "gated_activation", "any")
    check(
        compile_kernel(
            gated_activation_kernel,
            target,
            dict.fromkeys(("gate_up_ptr", "delta_ptr", "out_ptr"), "*bf16:16")
            | {"gate_up_stride": "i32:16"},
            activation_constants(14336, activation, settings["block"], has_delta),
            launch_options(settings),
        )
    )


@pytest.mark.parametrize("kind", ["gelu_tanh", "relu2"])
@pytest.mark.parametrize("target", TARGETS)
def test_activation_without_a_gate_compiles(target: str, kind: str) -> None:
    settings = tuned("fused", target, "gated_activation", "any")
    check(
        compile_kernel(
            plain_activation_kernel,
            target,
            dict.fromkeys(("x_ptr", "delta_ptr", "out_ptr"), "*bf16:16") | {"x_stride": "i32:16"},
            plain_constants(12288, kind, settings["block"], True),
            launch_options(settings),
        )
    )


@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "norm", "interleaved"),
    [
        (64, 64, "", False),
        (80, 32, "head", False),
        (256, 256, "head", False),
        (128, 128, "whole", False),
        (128, 64, "", True),
        (128, 128, "layer", True),
    ],
)
@pytest.mark.parametrize("target", TARGETS)
def test_rope_compiles(
    target: str,
    head_dim: int,
    rotary_dim: int,
    norm: NormKind,
    interleaved: bool,
    has_delta: bool,
) -> None:
    settings = tuned("kv", target, "rope_write_kv", rope_case(head_dim))
    values = ("qkv_ptr", "cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr", "delta_ptr")
    outputs = ("q_out_ptr", "kv_ptr")
    check(
        compile_kernel(
            rope_write_kernel,
            target,
            dict.fromkeys((*values, *outputs), "*bf16:16")
            | dict.fromkeys(("page_index_ptr", "page_offset_ptr"), "*i64")
            | {"inverse_ptr": "*fp32:16"}
            | {"qkv_stride": "i32:16", "page_stride": "i32:16", "eps": "fp32"},
            rope_constants(
                *(32, 8, head_dim, rotary_dim, 16),
                *(norm, settings["heads"], has_delta, interleaved),
            ),
            launch_options(settings),
        )
    )


@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_sums_of_q_and_k_compile(target: str, has_delta: bool) -> None:
    check(
        compile_kernel(
            qk_inverse_kernel,
            target,
            dict.fromkeys(("qkv_ptr", "delta_ptr"), "*bf16:16")
            | {"out_ptr": "*fp32:16", "qkv_stride": "i32:16", "eps": "fp32"},
            qk_constants(5120, 1024, has_delta),
            OPTIONS,
        )
    )
