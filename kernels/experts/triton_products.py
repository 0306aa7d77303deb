"""The products of a mixture of experts in Triton, each one launch over all experts: CUDA and
ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.experts.triton_route import Routed
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import Settings, launch_options, tuned

FEW_SLOTS = 16
"""Of each expert on average: tiles of as many rows then, else of more."""


@triton.jit
def tile_of(
    starts_ptr, tile, NUM_EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr
):
    """(expert, first slot of the tile in `order`, where the expert's slots end there). Tiles are
    numbered expert by expert, as many as each needs; behind the last one the expert is no less than
    NUM_EXPERTS."""
    at = tl.arange(0, BLOCK_E)
    real = at < NUM_EXPERTS
    start = tl.load(starts_ptr + at, mask=real, other=0)  # [E]
    end = tl.load(starts_ptr + at + 1, mask=real, other=0)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    is_mine = at == expert
    first = tl.sum(tl.where(is_mine, start + (tile - ends + tiles) * BLOCK_M, 0), 0)
    return expert, first, tl.sum(tl.where(is_mine, end, 0), 0)


@triton.jit
def gate_up_kernel(
    x_ptr,
    weights_ptr,
    order_ptr,
    starts_ptr,
    delta_ptr,
    out_ptr,
    HAS_DELTA: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SILU: tl.constexpr,
    GELU_SCALE: tl.constexpr,
    GELU_CUBIC: tl.constexpr,
):
    """grid (tiles of slots, blocks of INTER). One program: act(x @ gate.T) * (x @ up.T) of one
    tile, summed in float32; rows of x are read where they are.

    x: [tokens, HIDDEN]; weights: [experts, 2 * INTER, HIDDEN]; out: [slots in order, INTER];
    delta: [slots in order, 2 * INTER], added to the products, with HAS_DELTA
    """
    expert, first, end = tile_of(starts_ptr, tl.program_id(0), NUM_EXPERTS, BLOCK_E, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    rows = first + tl.arange(0, BLOCK_M)
    present = rows < end
    slots = tl.load(order_ptr + rows, mask=present, other=0)
    tokens = (slots // TOP_K).to(tl.int64)
    features = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = features < INTER
    x_ptr += tokens[:, None] * HIDDEN
    weights_ptr += expert.to(tl.int64) * (2 * INTER * HIDDEN)
    gate_ptr = weights_ptr + features.to(tl.int64)[None, :] * HIDDEN
    up_ptr = gate_ptr + INTER * HIDDEN
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, HIDDEN, BLOCK_K):
        inputs = k + tl.arange(0, BLOCK_K)
        there = inputs < HIDDEN
        x = tl.load(x_ptr + inputs[None, :], present[:, None] & there[None, :], 0.0)  # [M, K]
        inside = there[:, None] & wanted[None, :]
        of_gate = tl.load(gate_ptr + inputs[:, None], mask=inside, other=0.0)  # [K, N]
        of_up = tl.load(up_ptr + inputs[:, None], mask=inside, other=0.0)
        gate = tl.dot(x, of_gate, gate, input_precision="ieee")
        up = tl.dot(x, of_up, up, input_precision="ieee")
    kept = present[:, None] & wanted[None, :]
    if HAS_DELTA:
        delta_ptr += rows.to(tl.int64)[:, None] * (2 * INTER) + features[None, :]
        gate += tl.load(delta_ptr, mask=kept, other=0.0).to(tl.float32)
        up += tl.load(delta_ptr + INTER, mask=kept, other=0.0).to(tl.float32)
    # GELU's tanh form is a sigmoid of this, as in kernels/fused/triton_activation.py.
    slope = gate if SILU else GELU_SCALE * (gate + GELU_CUBIC * gate * gate * gate)
    value = gate / (1.0 + tl.exp(-slope)) * up
    at = rows.to(tl.int64)[:, None] * INTER + features[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def down_kernel(
    x_ptr,
    weights_ptr,
    shares_ptr,
    order_ptr,
    starts_ptr,
    delta_ptr,
    out_ptr,
    HAS_DELTA: tl.constexpr,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """grid (tiles of slots, blocks of HIDDEN). One program: share * (x @ down.T) of one tile,
    summed in float32, each row to its token's place.

    x: [slots in order, INTER]; weights: [experts, HIDDEN, INTER]; shares: [slots] float32;
    out: [slots, HIDDEN] float32; delta: [slots in order, HIDDEN], added to the product, with
    HAS_DELTA
    """
    expert, first, end = tile_of(starts_ptr, tl.program_id(0), NUM_EXPERTS, BLOCK_E, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    rows = first + tl.arange(0, BLOCK_M)
    present = rows < end
    slots = tl.load(order_ptr + rows, mask=present, other=0)
    shares = tl.load(shares_ptr + slots, mask=present, other=0.0)
    features = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = features < HIDDEN
    x_ptr += rows.to(tl.int64)[:, None] * INTER
    weights_ptr += expert.to(tl.int64) * (HIDDEN * INTER)
    weights_ptr += features.to(tl.int64)[None, :] * INTER
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, INTER, BLOCK_K):
        inputs = k + tl.arange(0, BLOCK_K)
        there = inputs < INTER
        x = tl.load(x_ptr + inputs[None, :], present[:, None] & there[None, :], 0.0)  # [M, K]
        inside = there[:, None] & wanted[None, :]
        weights = tl.load(weights_ptr + inputs[:, None], mask=inside, other=0.0)  # [K, N]
        total = tl.dot(x, weights, total, input_precision="ieee")
    kept = present[:, None] & wanted[None, :]
    if HAS_DELTA:
        delta_ptr += rows.to(tl.int64)[:, None] * HIDDEN + features[None, :]
        total += tl.load(delta_ptr, mask=kept, other=0.0).to(tl.float32)
    at = slots.to(tl.int64)[:, None] * HIDDEN + features[None, :]
    tl.store(out_ptr + at, total * shares[:, None], mask=kept)


def case_of(num_slots: int, num_experts: int) -> str:
    """The tuning table's: by shapes alone, as captured steps must."""
    return "few" if num_slots <= FEW_SLOTS * num_experts else "many"


def most_tiles(num_slots: int, num_experts: int, block_m: int) -> int:
    """However slots are shared out: each expert that has any has one tile that is not full."""
    return min(num_slots, num_slots // block_m + min(num_experts, num_slots))


def product_blocks(settings: Settings, itemsize: int) -> dict[str, int]:
    """A kernel's blocks. The tables are for 2 bytes an element; float32 has half the inputs."""
    return {
        "BLOCK_M": settings["block_m"],
        "BLOCK_N": settings["block_n"],
        "BLOCK_K": max(16, settings["block_k"] * 2 // itemsize),
    }


def activated(
    x: torch.Tensor,
    weights: torch.Tensor,
    routed: Routed,
    activation: dict[str, Any],
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """[num_slots, intermediate], in `routed.order`. weights: [experts, 2 * intermediate, hidden],
    contiguous. activation: gate_up_kernel's constexprs for it. delta: [num_slots, 2 * intermediate]
    in order, contiguous, of x's dtype: added to the products."""
    num_experts, inter, hidden = weights.shape[0], weights.shape[1] // 2, weights.shape[2]
    num_slots = routed.order.numel()
    case = case_of(num_slots, num_experts)
    settings = tuned("experts", device_name(x.device), "gate_up", case)
    tiles = most_tiles(num_slots, num_experts, settings["block_m"])
    out = x.new_empty(num_slots, inter)
    launch: Any = gate_up_kernel[(tiles, triton.cdiv(inter, settings["block_n"]))]
    launch(
        x,
        weights,
        routed.order,
        routed.starts,
        x if delta is None else delta,
        out,
        HAS_DELTA=delta is not None,
        HIDDEN=hidden,
        INTER=inter,
        NUM_EXPERTS=num_experts,
        BLOCK_E=triton.next_power_of_2(num_experts),
        TOP_K=num_slots // len(x),
        **product_blocks(settings, x.element_size()),
        **activation,
        **launch_options(settings),
    )
    return out


def given(
    x: torch.Tensor, weights: torch.Tensor, routed: Routed, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """[num_slots, hidden] float32, by slot. x: as `activated` returns it; weights: [experts,
    hidden, intermediate], contiguous. delta: [num_slots, hidden] in order, contiguous, of x's
    dtype: added to the product."""
    num_experts, hidden, inter = weights.shape
    num_slots = routed.order.numel()
    case = case_of(num_slots, num_experts)
    settings = tuned("experts", device_name(x.device), "down", case)
    tiles = most_tiles(num_slots, num_experts, settings["block_m"])
    out = x.new_empty(num_slots, hidden, dtype=torch.float32)
    launch: Any = down_kernel[(tiles, triton.cdiv(hidden, settings["block_n"]))]
    launch(
        x,
        weights,
        routed.shares,
        routed.order,
        routed.starts,
        x if delta is None else delta,
        out,
        HAS_DELTA=delta is not None,
        HIDDEN=hidden,
        INTER=inter,
        NUM_EXPERTS=num_experts,
        BLOCK_E=triton.next_power_of_2(num_experts),
        **product_blocks(settings, x.element_size()),
        **launch_options(settings),
    )
    return out
