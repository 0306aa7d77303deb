"""A mixture of experts by Triton kernels: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.experts.lora import ExpertLora
from kernels.experts.triton_products import activated, given
from kernels.experts.triton_route import Routed, route
from kernels.experts.triton_slots import added, slot_metadata
from kernels.experts.weights import ExpertWeights, Matrices
from kernels.fused.triton_activation import activation_constants
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned
from kernels.lora.metadata import LoraBatchMetadata, LoraGroup
from kernels.lora.op import LoraSegments


@triton.jit
def combine_kernel(
    given_ptr,
    x_ptr,
    gate_ptr,
    shared_ptr,
    delta_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """grid (tokens, blocks of HIDDEN). One program: the sum of what a token's experts gave, in
    order, and sigmoid(x · gate) * (shared + delta); in float32, rounded once.

    given: [tokens, TOP_K, HIDDEN] float32; gate: [HIDDEN]; all others [tokens, HIDDEN]
    """
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < HIDDEN
    total = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(TOP_K):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(given_ptr + (token * TOP_K + place) * HIDDEN + at, mask=real, other=0.0)
    if HAS_SHARED:
        products = tl.zeros([BLOCK], tl.float32)
        for k in range(0, HIDDEN, BLOCK):
            inputs = k + tl.arange(0, BLOCK)
            there = inputs < HIDDEN
            x = tl.load(x_ptr + token * HIDDEN + inputs, mask=there, other=0.0)
            gate = tl.load(gate_ptr + inputs, mask=there, other=0.0)
            products += x.to(tl.float32) * gate.to(tl.float32)
        minus = -tl.sum(products, 0)  # pyright: ignore[reportOperatorIssue]
        share = 1.0 / (1.0 + tl.exp(minus))
        shared = tl.load(shared_ptr + token * HIDDEN + at, mask=real, other=0.0).to(tl.float32)
        if HAS_DELTA:
            shared += tl.load(delta_ptr + token * HIDDEN + at, mask=real, other=0.0).to(tl.float32)
        total += share * shared
    tl.store(out_ptr + token * HIDDEN + at, total.to(out_ptr.dtype.element_ty), mask=real)


def mix_experts(
    x: torch.Tensor,
    weights: ExpertWeights,
    activation: str,
    shared: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    lora: ExpertLora | None = None,
) -> torch.Tensor:
    """As `kernels.experts.op.mix_experts`.

    Raises: ValueError for experts that do not lie in one piece.
    """
    gate_up, down = _whole("gate_up", weights.gate_up), _whole("down", weights.down)
    num_tokens, hidden = x.shape
    out = x.new_empty(num_tokens, hidden)
    if not num_tokens:
        return out
    routed = route(x, weights.router, weights.top_k, normalizes=weights.normalizes, lora=lora)
    adapters = _Slots(x, routed, lora)
    constants = activation_constants(0, activation, 0)
    kept = {name: constants[name] for name in ("SILU", "GELU_SCALE", "GELU_CUBIC")}
    inner = activated(x, gate_up, routed, kept, adapters.add_to_gate_up(gate_up.shape[1]))
    parts = given(inner, down, routed, adapters.add_to_down(inner, hidden))
    settings = tuned("experts", device_name(x.device), "combine", "any")
    combine_kernel[(num_tokens, triton.cdiv(hidden, settings["block"]))](
        parts,
        x,
        x if weights.shared_gate is None else weights.shared_gate,
        x if shared is None else shared.contiguous(),
        x if delta is None else delta.contiguous(),
        out,
        **combine_constants(
            hidden,
            weights.top_k,
            settings["block"],
            has_shared=shared is not None,
            has_delta=delta is not None,
        ),
        **launch_options(settings),
    )
    return out


class _Slots:
    """What adapters add, by slot in order."""

    def __init__(self, x: torch.Tensor, routed: Routed, lora: ExpertLora | None) -> None:
        """x: [num_tokens, hidden]"""
        self._x, self._routed, self._lora = x, routed, lora
        first = None if lora is None else lora.gate_up or lora.down
        self._metadata: LoraBatchMetadata | None = None
        if first is not None:  # both are of one step
            self._metadata = slot_metadata(_group(first).metadata, routed)

    def add_to_gate_up(self, out_features: int) -> torch.Tensor | None:
        if self._lora is None or self._lora.gate_up is None:
            return None
        tokens = self._routed.order.flatten() // self._routed.order.shape[1]
        return self._added(self._x[tokens], out_features, self._lora.gate_up)

    def add_to_down(self, inner: torch.Tensor, out_features: int) -> torch.Tensor | None:
        if self._lora is None or self._lora.down is None:
            return None
        return self._added(inner, out_features, self._lora.down)

    def _added(self, x: torch.Tensor, out_features: int, group: LoraSegments) -> torch.Tensor:
        assert self._lora is not None and self._metadata is not None
        pages = self._lora.layer_pages
        return added(x, out_features, pages, _group(group), self._metadata)


def _group(segments: LoraSegments) -> LoraGroup:
    if not isinstance(segments, LoraGroup):
        raise ValueError("lora: on a GPU, groups of a LoraBatchMetadata")
    return segments


def combine_constants(
    hidden: int, top_k: int, block: int, *, has_shared: bool, has_delta: bool
) -> dict[str, Any]:
    """combine_kernel's constexprs."""
    return {
        "HIDDEN": hidden,
        "TOP_K": top_k,
        "BLOCK": block,
        "HAS_SHARED": has_shared,
        "HAS_DELTA": has_delta,
    }


def _whole(name: str, matrices: Matrices) -> torch.Tensor:
    if not isinstance(matrices, torch.Tensor) or not matrices.is_contiguous():
        raise ValueError(f"{name}: on a GPU [experts, out, in] in one piece, contiguous")
    return matrices
