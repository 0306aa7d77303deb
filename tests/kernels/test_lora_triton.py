"""The Triton kernels of LoRA where there is no GPU: compiled for three of them."""

from __future__ import annotations

import re

import pytest
import torch

from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.extras import AFFINE_SLICE_FIELDS
from kernels.lora.plan import PLAN_EXPERT_ELEMS, PLAN_SLICE_FIELDS
from kernels.lora.triton_affine import affine_kernel
from kernels.lora.triton_expand import SPLITS_AT_ONCE, dot_precision, expand_kernel
from kernels.lora.triton_shrink import shrink_kernel
from kernels.lora.tuning import LoraTiles, Regime, tile_width, tiles_of
from tests.kernels.aot import FEW_BYTES, TARGETS, Built, compile_kernel

PAGE_ELEMS = 2 * 16 * 8 * 128  # a block of 16 tokens of Llama 3 8B
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
VARIANTS = [(torch.bfloat16, 8), (torch.float16, 8), (torch.bfloat16, 1), (torch.float32, 4)]
METADATA = {"tiles": "*i32", "page_indptr": "*i32", "page_ids": "*i32", "plans": "*i32"}
LAUNCH = METADATA | {"row_stride": "i32"}


def compile_shrink(
    target: str, regime: Regime, dtype: torch.dtype, align: int, expert_field: int = -1
) -> Built:
    tile = regime.shrink
    kind = DTYPES[dtype]
    return compile_kernel(
        shrink_kernel,
        target,
        {"hidden": "*fp32:16", "x": f"*{kind}:16", "pages": f"*{kind}:16"}
        | LAUNCH
        | {"in_features": "i32:16" if align > 1 else "i32", "x_stride": "i32:16"}
        | {"hidden_stride": "i32:16", "split_stride": "i32:16"},
        {"TILE_FIELDS": TILE_FIELDS, "EXPERT_FIELD": expert_field, "PAGE_ELEMS": PAGE_ELEMS}
        | {"ALIGN": align, "BLOCK_TOKENS": regime.block_tokens, "BLOCK_RANK": tile.block_rank}
        | {"BLOCK_K": tile_width(tile.block_k, dtype.itemsize, PAGE_ELEMS, align)}
        | {"K_PER_SPLIT": tile.k_per_split, "ACCUMULATE": align == 1},
        {"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def compile_expand(
    target: str, regime: Regime, dtype: torch.dtype, align: int, expert_field: int = -1
) -> Built:
    tile = regime.expand
    kind = DTYPES[dtype]
    return compile_kernel(
        expand_kernel,
        target,
        {"y": f"*{kind}:16", "hidden": "*fp32:16", "pages": f"*{kind}:16"}
        | LAUNCH
        | {"num_splits": "i32", "y_stride": "i32:16"}
        | {"hidden_stride": "i32:16", "split_stride": "i32:16"},
        {"TILE_FIELDS": TILE_FIELDS, "EXPERT_FIELD": expert_field, "PAGE_ELEMS": PAGE_ELEMS}
        | {"SPLITS_AT_ONCE": SPLITS_AT_ONCE}
        | {"SLICE_FIELDS": PLAN_SLICE_FIELDS, "ALIGN": align, "BLOCK_RANK": tile.block_rank}
        | {"BLOCK_TOKENS": regime.block_tokens}
        | {"BLOCK_OUT": tile_width(tile.block_out, dtype.itemsize, PAGE_ELEMS, align)}
        | {"PRECISION": dot_precision(dtype, target.startswith("gfx"))},
        {"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def compile_affine(target: str, regime: Regime, dtype: torch.dtype, align: int) -> Built:
    tile = regime.affine
    kind = DTYPES[dtype]
    return compile_kernel(
        affine_kernel,
        target,
        {"y": f"*{kind}:16", "pages": f"*{kind}:16"} | LAUNCH | {"y_stride": "i32:16"},
        {"TILE_FIELDS": TILE_FIELDS, "PAGE_ELEMS": PAGE_ELEMS}
        | {"SLICE_FIELDS": AFFINE_SLICE_FIELDS, "ALIGN": align}
        | {"BLOCK_TOKENS": regime.block_tokens}
        | {"BLOCK_OUT": tile_width(tile.block_out, dtype.itemsize, PAGE_ELEMS, align)},
        {"num_warps": tile.num_warps, "num_stages": 1},
    )


COMPILE = {"shrink": compile_shrink, "expand": compile_expand, "affine": compile_affine}


@pytest.mark.parametrize("regime", LoraTiles._fields)
@pytest.mark.parametrize("kernel", COMPILE)
@pytest.mark.parametrize("target", TARGETS)
def test_tuned_configurations_fit_the_device(target: str, kernel: str, regime: str) -> None:
    tiles = getattr(tiles_of(target), regime)
    for dtype, align in VARIANTS:
        built = COMPILE[kernel](target, tiles, dtype, align)
        assert built.shared_bytes <= TARGETS[target].shared_bytes, (dtype, built.shared_bytes)
        assert built.spilled_bytes <= FEW_BYTES, (dtype, align, built.registers)


@pytest.mark.parametrize(
    "regime",
    ["decode", *(pytest.param(each, marks=pytest.mark.slow) for each in ("shared", "prefill"))],
)
@pytest.mark.parametrize("kernel", ["shrink", "expand"])
@pytest.mark.parametrize("target", TARGETS)
def test_tiles_of_experts_fit_the_device(target: str, kernel: str, regime: str) -> None:
    """An expert's number more is read for a tile, and weights as wide as others."""
    tiles = getattr(tiles_of(target), regime)
    built = COMPILE[kernel](target, tiles, torch.bfloat16, 8, PLAN_EXPERT_ELEMS)
    assert built.shared_bytes <= TARGETS[target].shared_bytes
    assert built.spilled_bytes <= FEW_BYTES, built.registers
    if "ptx" in built.asm:
        assert len(re.findall(r"ld\.global\.\S*b16", built.asm["ptx"])) <= 2


@pytest.mark.parametrize("regime", LoraTiles._fields)
@pytest.mark.parametrize("kernel", COMPILE)
@pytest.mark.parametrize("target", TARGETS)
def test_aligned_weights_are_read_16_bytes_at_a_time(target: str, kernel: str, regime: str) -> None:
    """Else a thread would issue eight loads for one: seen where a hint of alignment got lost."""
    tiles = getattr(tiles_of(target), regime)
    built = COMPILE[kernel](target, tiles, torch.bfloat16, 8)
    if "ptx" in built.asm:
        wide = r"ld\.global\.\S*v4\.b32|cp\.async\.cg\.shared\.global"
        narrow = r"ld\.global\.\S*b16"
        text = built.asm["ptx"]
    else:
        wide, narrow = r"_load_dwordx4", r"_load_ushort"
        text = built.asm["amdgcn"]
    # What is left are single values, such as one column of y per thread of a narrow tile.
    assert len(re.findall(narrow, text)) <= 2
    assert len(re.findall(wide, text)) >= 2


@pytest.mark.parametrize("regime", LoraTiles._fields)
@pytest.mark.parametrize("kernel", COMPILE)
def test_the_default_fits_in_the_smallest_shared_memory(kernel: str, regime: str) -> None:
    """Of the devices without an entry: 64 KiB, as Turing has."""
    tiles = getattr(tiles_of("default"), regime)
    assert COMPILE[kernel]("sm_80", tiles, torch.bfloat16, 8).shared_bytes <= 64 * 1024


def test_where_metadata_lies_compiles_nothing_anew() -> None:
    for kernel in (shrink_kernel, expand_kernel, affine_kernel):
        unspecialized = {
            parameter.name
            for parameter in kernel.params
            if parameter.do_not_specialize_on_alignment
        }
        assert unspecialized == set(METADATA)
        stride = next(each for each in kernel.params if each.name == "row_stride")
        assert stride.do_not_specialize  # it differs between the layers and lm_head
