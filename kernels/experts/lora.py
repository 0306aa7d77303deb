"""Adapters on a mixture of experts: what the ops take, and the plain twin of their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.lora import naive
from kernels.lora.metadata import LoraGroup
from kernels.lora.op import LoraSegments
from kernels.lora.plan import Segment
from kernels.lora.read_back import segments_of


@dataclass(frozen=True)
class ExpertLora:
    """Of one layer. Segments are over tokens, disjoint and in order; a plan of `gate_up` or `down`
    is of each expert (kernels/lora/plan.py). None: no adapter of the step has the group.

    Semantics: with S the segment that a token is in, and e an expert that it has chosen,
        logits += router_S(x); gate_up[e] += gate_up_S,e(x); down[e] += down_S,e(act(gate) * up)
    so the first decides which experts are chosen.
    """

    layer_pages: torch.Tensor  # [num_pages, page_elems], contiguous: one layer of the pool
    router: LoraSegments | None = None
    gate_up: LoraSegments | None = None
    down: LoraSegments | None = None


def plain_segments(segments: LoraSegments, in_features: int) -> Sequence[Segment]:
    return segments_of(segments, in_features) if isinstance(segments, LoraGroup) else segments


def add_of_expert(
    y: torch.Tensor,
    x: torch.Tensor,
    layer_pages: torch.Tensor,
    segments: LoraSegments,
    expert: int,
    tokens: torch.Tensor,
) -> None:
    """Adds one expert's LoRA, in place. y: [rows, out]; x: [rows, in]; tokens: [rows] int64,
    ascending: of which token each row is."""
    mine: list[Segment] = []
    for start, end, pages, plan in plain_segments(segments, x.shape[1]):
        first, last = (int(torch.searchsorted(tokens, each)) for each in (start, end))
        if first < last:
            mine.append(Segment(first, last, pages, plan.of_expert(expert)))
    naive.lora_expand(y, naive.lora_shrink(x, layer_pages, mine), layer_pages, mine)
