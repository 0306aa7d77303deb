"""The Triton kernels of mixtures of experts with every tuned tile, compiled for GPUs that this
machine lacks: they fit in shared memory, spill next to nothing, and read whole vectors."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kernels.experts.triton_experts import combine_constants, combine_kernel
from kernels.experts.triton_products import down_kernel, gate_up_kernel, product_blocks
from kernels.experts.triton_route import choose_constants, choose_kernel, group_kernel
from kernels.experts.triton_slots import slot_keys_kernel, slot_tiles_kernel
from kernels.fused.triton_activation import activation_constants
from kernels.gpu.tuning import launch_options, tuned
from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.tuning import tiles_of
from tests.kernels.aot import FEW_BYTES, TARGETS, Built, compile_kernel

# Mixtral 8x7B and Qwen3 30B-A3B: experts, of a token, hidden, intermediate.
MODELS = {"mixtral": (8, 2, 4096, 14336), "qwen3": (128, 8, 2048, 768)}
PRODUCTS = dict.fromkeys(("order_ptr", "starts_ptr"), "*i32:16")


def check(target: str, built: Built) -> None:
    assert built.shared_bytes <= TARGETS[target].shared_bytes
    assert built.spilled_bytes <= FEW_BYTES, built.registers


def compile_product(
    target: str, model: str, kernel: str, case: str, dtype: str, *, has_delta: bool = True
) -> Built:
    num_experts, top_k, hidden, inter = MODELS[model]
    settings = tuned("experts", target, kernel, case)
    constants: dict[str, Any] = {
        "HAS_DELTA": has_delta,
        "HIDDEN": hidden,
        "INTER": inter,
        "NUM_EXPERTS": num_experts,
        "BLOCK_E": num_experts,
        **product_blocks(settings, 4 if dtype == "fp32" else 2),
    }
    values = {
        **dict.fromkeys(("x_ptr", "weights_ptr", "delta_ptr"), f"*{dtype}:16"),
        **PRODUCTS,
    }
    if kernel == "down":
        return compile_kernel(
            down_kernel,
            target,
            values | {"shares_ptr": "*fp32:16", "out_ptr": "*fp32:16"},
            constants,
            launch_options(settings),
        )
    activation = activation_constants(0, "silu", 0)
    constants |= {name: activation[name] for name in ("SILU", "GELU_SCALE", "GELU_CUBIC")}
    return compile_kernel(
        gate_up_kernel,
        target,
        values | {"out_ptr": f"*{dtype}:16"},
        constants | {"TOP_K": top_k},
        launch_options(settings),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_products_fit_the_device(target: str) -> None:
    for kernel in ("gate_up", "down"):
        for case, model in (("few", "mixtral"), ("many", "qwen3")):
            built = compile_product(target, model, kernel, case, "bf16")
            check(target, built)
            if "ptx" in built.asm:  # x and the weights go to shared memory 16 bytes at a time
                assert re.search(r"cp\.async\.c[ag]\.shared\.global .*, 0x10", built.asm["ptx"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_product_fits_the_device(target: str, dtype: str) -> None:
    for model in MODELS:
        for kernel in ("gate_up", "down"):
            for case in ("few", "many"):
                for has_delta in (False, True):
                    built = compile_product(target, model, kernel, case, dtype, has_delta=has_delta)
                    check(target, built)


@pytest.mark.parametrize("target", TARGETS)
def test_adapters_tiles_fit_the_device(target: str) -> None:
    slots = tuned("experts", target, "slots", "any")
    numbers = dict.fromkeys(("num_slots", "num_tiles", "max_segments"), "i32")
    pointers = dict.fromkeys(("order_ptr", "chosen_ptr", "keys_ptr"), "*i32:16")
    check(
        target,
        compile_kernel(
            slot_keys_kernel,
            target,
            pointers | {"tiles": "*i32"} | numbers,
            {"TILE_FIELDS": TILE_FIELDS, "TOP_K": 8}
            | {"BLOCK": slots["block"], "BLOCK_TILES": slots["block_tiles"]},
            launch_options(slots),
        ),
    )
    for regime in tiles_of(target):
        built = compile_kernel(
            slot_tiles_kernel,
            target,
            {"keys_ptr": "*i32:16", "out_ptr": "*i32:16"} | numbers,
            {"TILE_FIELDS": TILE_FIELDS, "BLOCK_TOKENS": regime.block_tokens}
            | {"BLOCK": slots["scan"]},
            launch_options(slots),
        )
        check(target, built)


@pytest.mark.parametrize("target", TARGETS)
def test_routing_and_sums_fit_the_device(target: str) -> None:
    for num_experts, top_k, hidden, _ in MODELS.values():
        choose = tuned("experts", target, "choose", "any")
        check(
            target,
            compile_kernel(
                choose_kernel,
                target,
                {"logits_ptr": "*bf16:16", "chosen_ptr": "*i32:16", "shares_ptr": "*fp32:16"},
                choose_constants(num_experts, top_k, normalizes=True),
                launch_options(choose),
            ),
        )
        combine = tuned("experts", target, "combine", "any")
        names = ("x_ptr", "gate_ptr", "shared_ptr", "delta_ptr", "out_ptr")
        check(
            target,
            compile_kernel(
                combine_kernel,
                target,
                {"given_ptr": "*fp32:16"} | dict.fromkeys(names, "*bf16:16"),
                combine_constants(hidden, top_k, combine["block"], has_shared=True, has_delta=True),
                launch_options(combine),
            ),
        )
    group = tuned("experts", target, "group", "any")
    check(
        target,
        compile_kernel(
            group_kernel,
            target,
            {"chosen_ptr": "*i32:16", **PRODUCTS, "num_slots": "i32"},
            {"BLOCK": group["block"]},
            launch_options(group),
        ),
    )
