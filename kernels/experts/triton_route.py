"""Choosing each token's experts, and bringing the tokens of each expert together, in Triton: CUDA
and ROCm. Nothing of it goes to the host, and grids depend on shapes alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels.experts.lora import ExpertLora
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned
from kernels.lora.op import lora_apply


@triton.jit
def choose_kernel(
    logits_ptr,
    chosen_ptr,
    shares_ptr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALIZES: tl.constexpr,
):
    """grid (tokens,). One program: one token's softmax, in float32, and its TOP_K largest shares,
    of equal ones those of lower number; ascending by expert.

    logits: [tokens, NUM_EXPERTS]; chosen: [tokens, TOP_K] int32; shares: likewise, float32
    """
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK_E)
    real = at < NUM_EXPERTS
    logits = tl.load(logits_ptr + token * NUM_EXPERTS + at, mask=real, other=float("-inf")).to(
        tl.float32
    )  # [E]
    powers = tl.exp(logits - tl.max(logits, 0))
    shares = powers / tl.sum(tl.where(real, powers, 0.0), 0)
    # Shares that are no numbers count as 0 here, lest fewer than TOP_K are chosen.
    left = tl.where(shares == shares, shares, 0.0)
    left = tl.where(real, left, -1.0)
    for _ in tl.static_range(TOP_K):  # pyright: ignore[reportGeneralTypeIssues]
        best = tl.max(left, 0)
        first = tl.min(tl.where(left == best, at, BLOCK_E), 0)
        left = tl.where(at == first, -2.0, left)
    is_chosen = left == -2.0
    place = tl.cumsum(is_chosen.to(tl.int32), 0) - 1
    if NORMALIZES:
        shares = shares / tl.sum(tl.where(is_chosen, shares, 0.0), 0)
    tl.store(chosen_ptr + token * TOP_K + place, at, mask=is_chosen)
    tl.store(shares_ptr + token * TOP_K + place, shares, mask=is_chosen)


@triton.jit(do_not_specialize=["num_slots"])
def group_kernel(
    chosen_ptr,
    order_ptr,
    starts_ptr,
    num_slots,
    BLOCK: tl.constexpr,
):
    """grid (experts,). One program: one expert's slots, in order.

    chosen: [num_slots] int32. order: [num_slots] int32, the slots of the first expert, then those
    of the second, and so on. starts: [experts + 1] int32, where each expert's begin.
    """
    expert = tl.program_id(0)
    before = 0
    for begin in range(0, num_slots, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        each = tl.load(chosen_ptr + at, mask=at < num_slots, other=2147483647)
        before += tl.sum((each < expert).to(tl.int32), 0)  # pyright: ignore[reportOperatorIssue]
    tl.store(starts_ptr + expert, before)
    for begin in range(0, num_slots, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        each = tl.load(chosen_ptr + at, mask=at < num_slots, other=2147483647)
        is_mine = each == expert
        place = before + tl.cumsum(is_mine.to(tl.int32), 0) - 1
        tl.store(order_ptr + place, at, mask=is_mine)
        before += tl.sum(is_mine.to(tl.int32), 0)  # pyright: ignore[reportOperatorIssue]
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, before)


class Routed(NamedTuple):
    """A slot is a token's place for one of its experts: token * top_k + place."""

    shares: torch.Tensor  # [num_slots] float32
    order: torch.Tensor  # [num_slots] int32: slots by expert
    starts: torch.Tensor  # [experts + 1] int32: where each expert's begin in `order`
    chosen: torch.Tensor  # [num_tokens, top_k] int32: each slot's expert


def choose(
    logits: torch.Tensor, top_k: int, *, normalizes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.experts.naive.route` from logits on; the experts int32."""
    num_tokens, num_experts = logits.shape
    chosen = logits.new_empty(num_tokens, top_k, dtype=torch.int32)
    shares = logits.new_empty(num_tokens, top_k, dtype=torch.float32)
    settings = tuned("experts", device_name(logits.device), "choose", "any")
    choose_kernel[(num_tokens,)](
        logits,
        chosen,
        shares,
        **choose_constants(num_experts, top_k, normalizes=normalizes),
        **launch_options(settings),
    )
    return chosen, shares


def choose_constants(num_experts: int, top_k: int, *, normalizes: bool) -> dict[str, Any]:
    """choose_kernel's constexprs."""
    return {
        "NUM_EXPERTS": num_experts,
        "BLOCK_E": triton.next_power_of_2(num_experts),
        "TOP_K": top_k,
        "NORMALIZES": normalizes,
    }


def route(
    x: torch.Tensor,
    router: torch.Tensor,
    top_k: int,
    *,
    normalizes: bool,
    lora: ExpertLora | None = None,
) -> Routed:
    """x: [num_tokens, hidden], num_tokens > 0; router: [experts, hidden]."""
    logits = F.linear(x, router)
    if lora is not None and lora.router is not None:
        lora_apply(logits, x, lora.layer_pages, lora.router)
    chosen, shares = choose(logits, top_k, normalizes=normalizes)
    order = torch.empty_like(chosen)
    starts = chosen.new_empty(len(router) + 1)
    settings = tuned("experts", device_name(x.device), "group", "any")
    launch: Any = group_kernel[(len(router),)]
    launch(
        chosen,
        order,
        starts,
        chosen.numel(),
        BLOCK=settings["block"],
        **launch_options(settings),
    )
    return Routed(shares, order, starts, chosen)
