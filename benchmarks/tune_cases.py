"""What the LoRA kernels are tuned on: Llama 3 8B's projection groups, in decode and prefill."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from benchmarks.errors import BenchError
from kernels.lora import naive
from kernels.lora.extras import AFFINE_ROW, AffineSegment, AffineSlice, affine_row
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import (
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    Segment,
    plan_row,
)
from kernels.lora.triton_affine import affine
from kernels.lora.triton_expand import expand
from kernels.lora.triton_shrink import shrink
from kernels.lora.tuning import Regime


class GroupShape(NamedTuple):
    in_features: int
    outs: tuple[int, ...]


GROUPS = (
    GroupShape(4096, (4096, 1024, 1024)),
    GroupShape(4096, (4096,)),
    GroupShape(4096, (14336, 14336)),
    GroupShape(14336, (4096,)),
)
PAGE_ELEMS = 2 * 16 * 8 * 128
_MIXED = (8, 16, 32, 64)
BATCHES: dict[str, list[list[tuple[int, int]]]] = {
    # (tokens, rank) of each segment
    "decode": [[(1, 16)] * 64, [(1, rank) for rank in _MIXED] * 8, [(16, 16)]],
    "shared": [[(64, 16)], [(8, 16)] * 8, [(8, rank) for rank in _MIXED]],
    "prefill": [[(2048, 16)], [(256, rank) for rank in _MIXED], [(500, 16), *[(1, 16)] * 12]],
}


def measured_cases(regime: str, device: torch.device) -> list[Measured]:
    return [Measured(shape, parts, device) for shape in GROUPS for parts in BATCHES[regime]]


class Measured:
    """One batch over one group, in bfloat16. Weights come back cold: do_bench clears the cache."""

    def __init__(
        self,
        shape: GroupShape,
        parts: list[tuple[int, int]],
        device: torch.device,
        page_elems: int = PAGE_ELEMS,
    ) -> None:
        torch.manual_seed(0)
        num_tokens = sum(tokens for tokens, _ in parts)
        out_features = sum(shape.outs)
        pages_of = [self._num_pages(shape, rank, page_elems) for _, rank in parts]
        ids = torch.randperm(sum(pages_of)).tolist()
        like = {"dtype": torch.bfloat16, "device": device}
        self.pages = torch.randn(len(ids), page_elems, **like) * 0.02
        self.x = torch.randn(num_tokens, shape.in_features, **like)
        self.y = torch.randn(num_tokens, out_features, **like)
        self.segments: list[Segment] = []
        self.affine_segments: list[AffineSegment] = []
        start = 0
        for (tokens, rank), count in zip(parts, pages_of, strict=True):
            run, ids = PageRun.of(ids[:count]), ids[count:]
            plan = self._plan(shape, rank)
            self.segments.append(Segment(start, start + tokens, run, plan))
            vectors = tuple(
                AffineSlice(part.b_offset, part.b_offset + part.out_features, *part[3:])
                for part in plan.slices
            )  # of any values: what B has there
            self.affine_segments.append(AffineSegment(start, start + tokens, run, vectors))
            start += tokens
        spans = LoraSpans.of([s[:2] for s in self.segments], [s.pages for s in self.segments])
        rows = np.array([[[plan_row(s.plan) for s in self.segments]]])
        self.group = LoraBatchMetadata.of(spans, rows, device).group(0, 0)
        rows = np.array([[[affine_row(s.slices) for s in self.affine_segments]]])
        self.affine_group = LoraBatchMetadata.of(spans, rows, device, AFFINE_ROW).group(0, 0)

    def seconds(self, kernel: str, regime: Regime) -> float:
        """Median; infinite when the device has no room for the tiles.

        Raises: BenchError when the result is wrong.
        """
        self.group.metadata.regime = self.affine_group.metadata.regime = regime
        try:
            self.check(kernel)
            hidden = shrink(self.x, self.pages, self.group)
            y = self.y.clone()
            launch = {
                "shrink": lambda: shrink(self.x, self.pages, self.group),
                "expand": lambda: expand(y, hidden, self.pages, self.group),
                "affine": lambda: affine(y, self.pages, self.affine_group),
            }[kernel]
            milliseconds: Any = do_bench(launch, return_mode="median")
            return milliseconds / 1e3
        except OutOfResources:
            return math.inf

    def check(self, kernel: str) -> None:
        """Against the plain twin in float32."""
        pages, x = self.pages.float(), self.x.float()
        y = self.y.clone() if kernel == "affine" else torch.zeros_like(self.y)
        expected = y.float()
        if kernel == "affine":
            affine(y, self.pages, self.affine_group)
            _affine_twin(expected, pages, self.affine_segments)
        else:
            expand(y, shrink(self.x, self.pages, self.group), self.pages, self.group)
            naive.lora_expand(
                expected, naive.lora_shrink(x, pages, self.segments), pages, self.segments
            )
        if not torch.allclose(y.float(), expected, rtol=1e-2, atol=1e-3):
            tiles = getattr(self.group.metadata.regime, kernel)
            raise BenchError("WRONG_RESULT", f"{kernel} with {tiles} is wrong: nothing is written")

    @staticmethod
    def _num_pages(shape: GroupShape, rank: int, page_elems: int) -> int:
        elems = rank * (len(shape.outs) * shape.in_features + sum(shape.outs)) + 2 * max(shape.outs)
        return -(-elems // page_elems)

    @staticmethod
    def _plan(shape: GroupShape, rank: int) -> GroupPlan:
        slices: list[ExpandSlice] = []
        total_rank = rank * len(shape.outs)
        b_offset, out_start = total_rank * shape.in_features, 0
        for at, out in enumerate(shape.outs):
            slices.append(ExpandSlice(at * rank, rank, b_offset, out_start, out))
            b_offset += rank * out
            out_start += out
        return GroupPlan(total_rank, shape.in_features, 0, tuple(slices))


def _affine_twin(y: torch.Tensor, pages: torch.Tensor, segments: list[AffineSegment]) -> None:
    for start, end, run, slices in segments:
        for scale, shift, out_start, out in slices:
            part = y[start:end, out_start : out_start + out]
            part.addcmul_(part, naive.read_span(pages, run, scale, 1, out))
            part.add_(naive.read_span(pages, run, shift, 1, out))
