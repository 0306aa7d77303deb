"""Attention kernels with every tuned setting, compiled for GPUs that this machine lacks."""

from __future__ import annotations

import re

import pytest
import torch

from kernels.attention.triton_decode import (
    COMBINE_OPTIONS,
    combine_constants,
    combine_kernel,
    decode_constants,
    decode_kernel,
)
from kernels.attention.triton_prefill import prefill_constants, prefill_kernel
from kernels.attention.triton_scores import Scores
from kernels.gpu.tuning import Settings, launch_options, tuned
from tests.kernels.aot import FEW_BYTES, TARGETS, Built, compile_kernel

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
SMALLEST_SHARED_BYTES = 64 * 1024  # of the devices that "default" is for

# head_dim, dtype, window, soft_cap, heads of one key head
CASES = [
    (64, torch.bfloat16, None, None, 7),
    (128, torch.bfloat16, None, None, 4),
    (256, torch.bfloat16, 4096, 50.0, 2),
    (64, torch.float32, None, None, 4),
    (128, torch.float32, None, None, 4),
    (256, torch.float32, None, 50.0, 2),
]
LARGEST_GROUP = (256, torch.bfloat16, None, None, 64)
PADDED_HEAD = (96, torch.float16, 4096, None, 1)
DEVICES = [*TARGETS, "default"]
BUILDS = [
    *((device, case) for device in DEVICES for case in CASES),
    *((device, PADDED_HEAD) for device in ("sm_90", "gfx942")),
    ("default", LARGEST_GROUP),
]


def case_id(case: tuple) -> str:
    return f"{case[0]}-{TYPES[case[1]]}-{case[4]}"


each_build = pytest.mark.parametrize(
    ("device", "case"),
    BUILDS,
    ids=lambda value: (
        value if isinstance(value, str) else f"{value[0]}-{TYPES[value[1]]}-{value[4]}"
    ),
)


def scores_of(case: tuple) -> Scores:
    head_dim, _, window, soft_cap, group = case
    return Scores(8, group, head_dim, 16, head_dim**-0.5, window, soft_cap)


def settings_of(device: str, kernel: str, case: tuple) -> Settings:
    return tuned("attention", device, kernel, scores_of(case).case(case[1]))


def target_of(device: str) -> str:
    return "sm_80" if device == "default" else device


def shared_limit(device: str) -> int:
    return SMALLEST_SHARED_BYTES if device == "default" else TARGETS[device].shared_bytes


def assert_whole_vectors(built: Built) -> None:
    """Keys and values are read 16 bytes at a time."""
    if "ptx" in built.asm:
        loads = re.findall(r"cp\.async\.cg\S* .*0x10|ld\.global\S*\.v4\.b32", built.asm["ptx"])
        narrow = re.findall(r"ld\.global\S*\.b16", built.asm["ptx"])
    else:
        loads = re.findall(r"(?:global|buffer)_load_dwordx4", built.asm["amdgcn"])
        narrow = re.findall(r"(?:global|buffer)_load_\w*short", built.asm["amdgcn"])
    assert loads and not narrow


@each_build
def test_decode_compiles(device: str, case: tuple) -> None:
    settings, element = settings_of(device, "decode", case), f"*{TYPES[case[1]]}:16"
    constants = decode_constants(scores_of(case), settings)
    assert constants["MIN_SPLIT"] % constants["BLOCK_N"] == 0
    built = compile_kernel(
        decode_kernel,
        target_of(device),
        {
            "q_ptr": element,
            "kv_ptr": element,
            **dict.fromkeys(("rows_ptr", "tables_ptr", "seq_lens_ptr"), "*i32"),
            **dict.fromkeys(("partial_ptr", "lse_ptr"), "*fp32:16"),
            **dict.fromkeys(("q_stride", "page_stride"), "i32:16"),
            **dict.fromkeys(("table_stride", "grid_splits", "window"), "i32"),
            **dict.fromkeys(("scale", "cap"), "fp32"),
        },
        constants,
        launch_options(settings),
    )
    assert built.shared_bytes <= shared_limit(device)
    assert built.spilled_bytes <= FEW_BYTES, built.registers
    assert_whole_vectors(built)


@each_build
def test_prefill_compiles(device: str, case: tuple) -> None:
    settings, element = settings_of(device, "prefill", case), f"*{TYPES[case[1]]}:16"
    constants = prefill_constants(scores_of(case), settings)
    built = compile_kernel(
        prefill_kernel,
        target_of(device),
        {
            **dict.fromkeys(("q_ptr", "kv_ptr", "out_ptr"), element),
            **dict.fromkeys(("indptr_ptr", "first_rows_ptr", "seq_lens_ptr", "tables_ptr"), "*i32"),
            **dict.fromkeys(("q_stride", "out_stride", "page_stride"), "i32:16"),
            **dict.fromkeys(("num_seqs", "num_tiles", "table_stride", "window"), "i32"),
            **dict.fromkeys(("scale", "cap"), "fp32"),
        },
        constants,
        launch_options(settings),
    )
    assert built.shared_bytes <= shared_limit(device)
    assert built.spilled_bytes <= FEW_BYTES, built.registers
    assert_whole_vectors(built)


@pytest.mark.parametrize("head_dim", [80, 256])
@pytest.mark.parametrize("device", DEVICES)
def test_combine_compiles(device: str, head_dim: int) -> None:
    case = (head_dim, torch.bfloat16, 4096, None, 4)
    scores, settings = scores_of(case), settings_of(device, "decode", case)
    built = compile_kernel(
        combine_kernel,
        target_of(device),
        {
            **dict.fromkeys(("partial_ptr", "lse_ptr"), "*fp32:16"),
            **dict.fromkeys(("rows_ptr", "seq_lens_ptr"), "*i32"),
            "out_ptr": "*bf16:16",
            "out_stride": "i32:16",
            **dict.fromkeys(("grid_splits", "window"), "i32"),
        },
        combine_constants(scores, settings, decode_constants(scores, settings)),
        COMBINE_OPTIONS,
    )
    assert built.shared_bytes <= shared_limit(device)
    assert built.spilled_bytes <= FEW_BYTES, built.registers
