"""A mixture of experts on CPU. A step reads the experts that its tokens have chosen and no others,
each once; what a token gets does not depend on the other tokens.

Where the experts' matrices are in panels (kernels/linear/cpu.py) all of it is one program;
elsewhere their products are made one expert after the other, by whatever `kernels.linear.op` has.
"""

from __future__ import annotations

import enum
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.cpu.floats import SUPPORTED_DTYPES
from kernels.cpu.program import Program
from kernels.experts import cpu_group as group
from kernels.experts import cpu_route as route
from kernels.experts.lora import ExpertLora, plain_segments
from kernels.experts.weights import ExpertWeights, panels_of
from kernels.fused import cpu as fused
from kernels.linear import arguments as args
from kernels.linear import cpu as linear
from kernels.linear.half_tile import RUN
from kernels.linear.op import Weight
from kernels.linear.op import linear as apply_linear
from kernels.lora.cpu import lora_apply_blocks, lora_arguments, lora_worker
from kernels.lora.op import lora_apply
from kernels.lora.plan import BLOCK_FIELDS, SegmentGroup


class Part(enum.IntEnum):
    """Of the program: what is run on its own where products are made elsewhere."""

    LOGITS = 0
    BEFORE = 1
    PRODUCTS = 2
    AFTER = 3


class Before(enum.IntEnum):
    CHOOSE = 0
    GROUP = 1
    GATHER = 2


class Products(enum.IntEnum):
    SPREAD_GATHERED = 0
    GATE_UP = 1
    GATE_UP_LORA = 2
    ACTIVATION = 3
    SPREAD_ACTIVATED = 4
    DOWN = 5
    DOWN_LORA = 6


def supports(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in SUPPORTED_DTYPES


def mix_experts(
    x: torch.Tensor,
    weights: ExpertWeights,
    activation: str,
    shared: torch.Tensor | None = None,
    lora: ExpertLora | None = None,
) -> torch.Tensor:
    """As `kernels.experts.op.mix_experts`."""
    out = torch.empty_like(x)
    if x.shape[0] == 0:
        return out
    panels = weights.panels
    mixture = _mixture(x.dtype, activation, None if panels is None else panels.layouts)
    shared = None if shared is None else shared.contiguous()
    mixture.tell(x, weights, shared, out)
    if panels is not None and lora is None:
        mixture.program.run(Part.LOGITS, Part.AFTER + 1)
        return out
    start = Part.LOGITS
    if lora is not None and lora.router is not None:
        start = Part.BEFORE
        mixture.program.run(Part.LOGITS, start)
        logits = mixture.logits(len(x), weights.num_experts)
        lora_apply(logits, x, lora.layer_pages, lora.router)
    mixture.program.run(start, Part.PRODUCTS)
    added = mixture.find_lora(weights, lora)
    if panels is not None:
        mixture.tell_lora(added)
        mixture.program.run(Part.PRODUCTS, Part.AFTER + 1)
        return out
    mixture.multiply_apart(weights, added)
    mixture.program.run(Part.AFTER, Part.AFTER + 1)
    return out


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    width = args.WIDEST  # which all layouts have room for
    x = torch.zeros(1, width, dtype=dtype)
    gate_up, down = (
        torch.zeros(2 * width, width, dtype=dtype),
        torch.zeros(width, width, dtype=dtype),
    )
    weights = ExpertWeights(x, [gate_up], [down], x, top_k=1, normalizes=True)
    mix_experts(x, weights, "silu", x)
    numbers = np.zeros((2, BLOCK_FIELDS), dtype=np.int64)
    group.lora_blocks(numbers[0], numbers[0], numbers[:, :2].copy(), numbers)
    for layout in linear.layouts() if dtype is torch.bfloat16 else ():
        weights.gate_up, weights.down = [layout.pack(gate_up)], [layout.pack(down)]
        weights.panels = panels_of(weights.gate_up, weights.down)
        mix_experts(x, weights, "silu", x)


@cache
def _mixture(
    dtype: torch.dtype, activation: str, layouts: tuple[linear.Layout, linear.Layout] | None
) -> _Mixture:
    return _Mixture(dtype, activation, layouts)


class _Mixture:
    """A program and its buffers, kept between calls (one engine thread) and grown as needed."""

    def __init__(
        self,
        dtype: torch.dtype,
        activation: str,
        layouts: tuple[linear.Layout, linear.Layout] | None,
    ) -> None:
        self.program = Program(len(Part), max(len(Before), len(Products)))
        self._dtype = dtype
        self._activation = activation
        self._layouts = layouts
        self._plan = np.zeros(group.PLAN_SIZE, dtype=np.int64)
        self._buffers: dict[str, torch.Tensor] = {}
        workers = self.program.workers
        workers[Part.LOGITS, 0] = route.logits_worker(dtype)().address
        workers[Part.BEFORE, Before.CHOOSE] = route.choose_worker(dtype)().address
        workers[Part.BEFORE, Before.GROUP] = group.group_work().address
        workers[Part.BEFORE, Before.GATHER] = group.gather_work().address
        workers[Part.AFTER, 0] = route.combine_worker(dtype)().address
        if layouts is None:
            return
        worker = fused.activation_worker(dtype, activation)
        workers[Part.PRODUCTS, Products.ACTIVATION] = worker().address
        for layout, spread, product in (
            (layouts[0], Products.SPREAD_GATHERED, Products.GATE_UP),
            (layouts[1], Products.SPREAD_ACTIVATED, Products.DOWN),
        ):
            if layout.interleave_several is not None:
                workers[Part.PRODUCTS, spread] = layout.interleave_several().address
            workers[Part.PRODUCTS, product] = layout.multiply_several().address

    def tell(
        self,
        x: torch.Tensor,
        weights: ExpertWeights,
        shared: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """x, shared, out: contiguous, [num_tokens, hidden], num_tokens > 0."""
        num_tokens, hidden = x.shape
        num_experts, top_k = weights.num_experts, weights.top_k
        num_slots = num_tokens * top_k
        x_at = x.data_ptr()
        logits = self._buffer("logits", num_tokens * num_experts, self._dtype)
        shares = self._buffer("shares", num_tokens * num_experts, torch.float32)
        shares_of_chosen = self._buffer("weights", num_slots, torch.float32)
        chosen, slots, tokens = (
            self._buffer(name, num_slots, torch.int64) for name in ("chosen", "slots", "tokens")
        )
        gathered = self._buffer("gathered", num_slots * hidden, self._dtype)
        given = self._buffer("given", num_slots * hidden, self._dtype)
        self._set(
            Part.LOGITS,
            0,
            (0, 0, num_tokens, num_experts, hidden, x_at, weights.router.data_ptr(), logits),
        )
        normalizes = int(weights.normalizes)
        told = num_tokens, num_experts, top_k, normalizes, logits, shares, chosen, shares_of_chosen
        self._set(Part.BEFORE, Before.CHOOSE, (0, 0, *told))
        self._plan[: group.NUM_FIELDS] = (
            num_tokens,
            top_k,
            num_experts,
            chosen,
            slots,
            tokens,
            self._buffer("starts", num_experts + 1, torch.int64),
            self._buffer("count", 1, torch.int64),
            self._buffer("tiles", 3 * num_slots, torch.int64),
        )
        num_products = self._tell_products(weights, num_slots, hidden, gathered, given)
        plan = self._plan.ctypes.data
        self._set(Part.BEFORE, Before.GROUP, (0, 0, plan, num_products))
        words = hidden * x.element_size() // 2
        self._set(Part.BEFORE, Before.GATHER, (0, 0, num_slots, words, tokens, x_at, gathered))
        totals = self._buffer("totals", torch.get_num_threads() * hidden, torch.float32)
        gate, shared_at = 0, 0
        if shared is not None and weights.shared_gate is not None:
            gate, shared_at = weights.shared_gate.data_ptr(), shared.data_ptr()
        sizes = num_tokens, hidden, top_k, slots, shares_of_chosen
        told = (0, 0, *sizes, given, x_at, gate, shared_at, totals, out.data_ptr())
        self._set(Part.AFTER, 0, told)

    def _tell_products(
        self, weights: ExpertWeights, num_slots: int, hidden: int, gathered: int, given: int
    ) -> int:
        """Returns how many products are told of."""
        panels, layouts = weights.panels, self._layouts
        if panels is None or layouts is None:
            return 0
        inter = linear.features_of(_tensor(weights.down[0]))[0]
        gate_up = self._buffer("gate_up", num_slots * 2 * inter, self._dtype)
        activated = self._buffer("activated", num_slots * inter, self._dtype)
        most = min(weights.num_experts, num_slots)  # experts that have slots
        count = self._buffer("count", 1, torch.int64)
        # As `args.interleaved_size`: of each row, and what its sums are scaled with.
        row_words = [-(-features // RUN) * RUN + 1 for features in (hidden, inter)]
        interleaved = 0
        if any(each.interleave_several is not None for each in layouts):
            size = group.most_rows(num_slots) * max(row_words)
            interleaved = self._buffer("interleaved", size, torch.float32)
        for index, (phases, name, inputs, outputs, x, y) in enumerate(
            (
                (
                    (Products.SPREAD_GATHERED, Products.GATE_UP),
                    *("gate_up", hidden, 2 * inter, gathered, gate_up),
                ),
                (
                    (Products.SPREAD_ACTIVATED, Products.DOWN),
                    *("down", inter, hidden, activated, given),
                ),
            )
        ):
            multiply = self._buffer(f"multiply {name}", most * args.NUM_ARGUMENTS, torch.int64)
            interleave = 0
            if layouts[index].interleave_several is not None:
                size = most * args.I_NUM_ARGUMENTS
                interleave = self._buffer(f"interleave {name}", size, torch.int64)
                told = args.several_arguments(count, interleave)
                self._set(Part.PRODUCTS, phases[0], told)
            self._set(Part.PRODUCTS, phases[1], args.several_arguments(count, multiply))
            start = group.NUM_FIELDS + index * group.PRODUCT_FIELDS
            self._plan[start : start + group.PRODUCT_FIELDS] = (
                inputs,
                outputs,
                panels.num_panels[index],
                panels.addresses[index].ctypes.data,
                x,
                y,
                multiply,
                interleave,
                interleaved,
                row_words[index],
            )
        told = fused.activation_arguments(num_slots, inter, gate_up, activated)
        self._set(Part.PRODUCTS, Products.ACTIVATION, told)
        workers = self.program.workers
        workers[Part.PRODUCTS, Products.GATE_UP_LORA] = 0
        workers[Part.PRODUCTS, Products.DOWN_LORA] = 0
        return 2

    @property
    def _num_slots(self) -> int:
        return int(self._plan[group.NUM_TOKENS] * self._plan[group.TOP_K])

    def _rows(self, name: str, width: int) -> torch.Tensor:
        """[num_slots, width]: a buffer that was told of."""
        return self._buffers[name][: self._num_slots * width].view(-1, width)

    def logits(self, num_tokens: int, num_experts: int) -> torch.Tensor:
        return self._buffers["logits"][: num_tokens * num_experts].view(num_tokens, num_experts)

    def find_lora(self, weights: ExpertWeights, lora: ExpertLora | None) -> list[_Added]:
        """What adapters add to the products, in the order of these; slots must be grouped."""
        if lora is None:
            return []
        hidden, inter = weights.router.shape[1], weights.intermediate_size
        starts = self._buffers["starts"][: weights.num_experts + 1].numpy()
        tokens = self._buffers["tokens"][: self._num_slots].numpy()
        added: list[_Added] = []
        for phase, segments, names, widths in (
            (Products.GATE_UP_LORA, lora.gate_up, ("gathered", "gate_up"), (hidden, 2 * inter)),
            (Products.DOWN_LORA, lora.down, ("activated", "given"), (inter, hidden)),
        ):
            if segments is None:
                continue
            adapters = SegmentGroup.of(plain_segments(segments, widths[0]))
            blocks = np.empty((self._num_slots, BLOCK_FIELDS), dtype=np.int64)
            count = group.lora_blocks(starts, tokens, adapters.common.spans, blocks)
            if count > 0:
                told = phase, lora.layer_pages, adapters, blocks[:count], names, widths
                added.append(_Added(*told))
        return added

    def tell_lora(self, added: list[_Added]) -> None:
        """The program's phases for it. added: kept by the caller until the program has run."""
        max_rank = max((each.max_rank for each in added), default=0)
        width = max((max(each.widths) for each in added), default=0)
        for each in added:
            x, y = (self._rows(*told) for told in zip(each.names, each.widths, strict=True))
            pages, plans = each.layer_pages, each.adapters.plans
            assert plans.flags.c_contiguous
            told = lora_arguments(
                each.adapters.common,
                max_rank,
                width,
                len(x),
                x.shape[1],
                y.stride(0),
                x.stride(0),
                pages.shape[0],
                pages.shape[1],
                y.data_ptr(),
                x.data_ptr(),
                pages.data_ptr(),
                plans.ctypes.data,
                each.blocks,
            )
            self._set(Part.PRODUCTS, each.phase, told)
            worker = lora_worker(self._dtype)
            self.program.workers[Part.PRODUCTS, each.phase] = worker().address

    def multiply_apart(self, weights: ExpertWeights, added: list[_Added]) -> None:
        """The products, of what was gathered, one expert after the other."""
        hidden, inter = weights.router.shape[1], weights.intermediate_size
        gathered, given = self._rows("gathered", hidden), self._rows("given", hidden)
        starts = self._buffers["starts"][: weights.num_experts + 1].tolist()
        spans = [
            (expert, *span) for expert, span in enumerate(pairwise(starts)) if span[0] < span[1]
        ]
        if not added:
            for expert, start, end in spans:
                gate_up = apply_linear(gathered[start:end], weights.gate_up[expert])
                activated = fused.gated_activation(gate_up, self._activation)
                given[start:end] = apply_linear(activated, weights.down[expert])
            return
        self._buffer("gate_up", self._num_slots * 2 * inter, self._dtype)
        self._buffer("activated", self._num_slots * inter, self._dtype)
        gate_up, activated = self._rows("gate_up", 2 * inter), self._rows("activated", inter)
        for expert, start, end in spans:
            gate_up[start:end] = apply_linear(gathered[start:end], weights.gate_up[expert])
        self._add_apart(added, Products.GATE_UP_LORA)
        activated.copy_(fused.gated_activation(gate_up, self._activation))
        for expert, start, end in spans:
            given[start:end] = apply_linear(activated[start:end], weights.down[expert])
        self._add_apart(added, Products.DOWN_LORA)

    def _add_apart(self, added: list[_Added], phase: Products) -> None:
        for each in added:
            if each.phase == phase:
                x, y = (self._rows(*told) for told in zip(each.names, each.widths, strict=True))
                lora_apply_blocks(y, x, each.layer_pages, each.adapters, each.blocks)

    def _set(self, part: Part, phase: int, told: tuple[int, ...]) -> None:
        self.program.arguments[part, phase, : len(told)] = told

    def _buffer(self, name: str, size: int, dtype: torch.dtype) -> int:
        """The address of at least so many elements."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # or it could be written to in that mode alone
                buffer = self._buffers[name] = torch.empty(size, dtype=dtype)
        return buffer.data_ptr()


class _Added(NamedTuple):
    """What adapters add to one product of all slots."""

    phase: Products
    layer_pages: torch.Tensor
    adapters: SegmentGroup  # over tokens
    blocks: np.ndarray[Any, Any]  # of slots, as `LoraSpans.blocks`
    names: tuple[str, str]  # of the buffers of inputs and outputs
    widths: tuple[int, int]

    @property
    def max_rank(self) -> int:
        return int(self.adapters.plans[:, 0].max())


def _tensor(weight: Weight) -> torch.Tensor:
    assert isinstance(weight, torch.Tensor)
    return weight
