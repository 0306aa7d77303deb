"""The Triton kernels of quantised matrices with every tuned tile, compiled for GPUs that this
machine lacks: they fit in shared memory, spill next to nothing, and read whole vectors."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from kernels.gpu.tuning import launch_options, tuned
from kernels.quantized.matrix import Kind
from kernels.quantized.triton_linear import TILES, add_splits_kernel, linear_kernel
from kernels.quantized.triton_weights import dequantize_kernel, weight_constants
from tests.kernels.aot import FEW_BYTES, TARGETS, Built, compile_kernel
from tests.kernels.quantized_cases import random_matrix

MATRIX = {
    "codes_ptr": "*u8:16",
    "scales_ptr": "*fp16",
    "zeros_ptr": "*u8",
    "groups_ptr": "*i32",
}
SIZES = dict.fromkeys(("outputs", "inputs", "row_bytes", "group_size"), "i32:16")


class Case(NamedTuple):
    tile: int
    kind: Kind
    num_groups: int  # of 4096 inputs
    has_zeros: bool = False
    is_ordered: bool = True


QUICK = (
    Case(16, "uint4", 32, has_zeros=True),
    Case(32, "float8_e4m3", 1),
    Case(64, "fp4", 128),
    Case(64, "uint4", 32, is_ordered=False),
)
EVERY = tuple(
    Case(tile, kind, num_groups, kind in ("uint4", "uint8"), is_ordered)
    for tile in TILES
    for kind in ("uint4", "uint8", "float8_e4m3", "nf4", "fp4")
    for num_groups, is_ordered in ((1, True), (32, True), (128, True), (32, False))
)


def constants_of(case: Case, block_k: int) -> dict[str, Any]:
    matrix = random_matrix(
        case.kind,
        *(1, 4096, case.num_groups),
        has_zeros=case.has_zeros,
        is_ordered=case.is_ordered,
    )
    return weight_constants(matrix, block_k)


def bits_of(kind: Kind) -> int:
    return 8 if kind in ("uint8", "float8_e4m3") else 4


def compile_linear(target: str, case: Case, is_split: bool, dtype: str = "bf16") -> Built:
    settings = tuned("quantized", target, "linear", f"{case.tile}x{bits_of(case.kind)}")
    return compile_kernel(
        linear_kernel,
        target,
        {"x_ptr": f"*{dtype}:16", **MATRIX, "bias_ptr": f"*{dtype}"}
        | {"y_ptr": "*fp32:16" if is_split else f"*{dtype}:16", "num_tokens": "i32"}
        | {"x_stride": "i32:16", "blocks_per_split": "i32", **SIZES},
        {"BLOCK_M": case.tile, "BLOCK_N": settings["block_n"], "HAS_BIAS": not is_split}
        | constants_of(case, settings["block_k"]),
        launch_options(settings),
    )


def check(target: str, built: Built) -> None:
    assert built.shared_bytes <= TARGETS[target].shared_bytes
    assert built.spilled_bytes <= FEW_BYTES, built.registers


@pytest.mark.parametrize("target", TARGETS)
def test_products_fit_the_device(target: str) -> None:
    for at, case in enumerate(QUICK):
        check(target, compile_linear(target, case, is_split=at % 2 == 0))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("target", TARGETS)
def test_all_products_fit_the_device(target: str, dtype: str) -> None:
    for at, case in enumerate(EVERY):
        check(target, compile_linear(target, case, at % 2 == 0, dtype))


@pytest.mark.parametrize("target", TARGETS)
def test_codes_are_read_16_bytes_at_a_time(target: str) -> None:
    """Else a thread would issue sixteen loads for one, and none ahead of time."""
    built = compile_linear(target, Case(16, "nf4", 64), is_split=True)
    if "ptx" in built.asm:
        text = built.asm["ptx"]
        assert not re.search(r"ld\.global\.\S*b8", text)
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*\], (0x\w+)", text)
        assert sizes and set(sizes) == {"0x10"}
    else:
        text = built.asm["amdgcn"]
        assert not re.search(r"_load_(u|s)byte", text)
        assert len(re.findall(r"_load_dwordx4", text)) >= 2


@pytest.mark.parametrize("target", TARGETS)
def test_dequantising_fits_the_device(target: str) -> None:
    for case in (Case(16, "uint4", 32, has_zeros=True), Case(16, "float8_e4m3", 1)):
        settings = tuned("quantized", target, "dequantize", str(bits_of(case.kind)))
        built = compile_kernel(
            dequantize_kernel,
            target,
            {**MATRIX, "out_ptr": "*bf16:16", "first": "i32", "end": "i32", **SIZES},
            {"BLOCK_N": settings["block_n"]} | constants_of(case, settings["block_k"]),
            launch_options(settings),
        )
        check(target, built)


@pytest.mark.parametrize("target", TARGETS)
def test_adding_splits_fits_the_device(target: str) -> None:
    settings = tuned("quantized", target, "add_splits", "any")
    built = compile_kernel(
        add_splits_kernel,
        target,
        {"parts_ptr": "*fp32:16", "bias_ptr": "*bf16", "y_ptr": "*bf16:16"}
        | {"num_tokens": "i32", "outputs": "i32:16"},
        {"SPLITS": 4, "BLOCK": settings["block"], "HAS_BIAS": True},
        launch_options(settings),
    )
    assert built.shared_bytes == 0
    check(target, built)


def test_the_default_fits_in_the_smallest_shared_memory() -> None:
    """Of the devices without an entry: 64 KiB, as Turing has."""
    settings = tuned("quantized", "default", "linear", "64x8")
    case = Case(64, "float8_e4m3", 1)
    built = compile_kernel(
        linear_kernel,
        "sm_80",
        {"x_ptr": "*bf16:16", **MATRIX, "bias_ptr": "*bf16", "y_ptr": "*bf16:16"}
        | {"num_tokens": "i32", "x_stride": "i32:16", "blocks_per_split": "i32", **SIZES},
        {"BLOCK_M": 64, "BLOCK_N": settings["block_n"], "HAS_BIAS": False}
        | constants_of(case, settings["block_k"]),
        launch_options(settings),
    )
    assert built.shared_bytes <= 64 * 1024
