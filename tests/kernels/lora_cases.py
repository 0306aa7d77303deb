"""Random batches of LoRA segments over NaN-filled pages, and what must come out, in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.lora.plan import ExpandSlice, GroupPlan, PageRun, Segment


class Shape(NamedTuple):
    in_features: int
    outs: tuple[int, ...]  # output columns of each projection
    page_elems: int

    @property
    def out_features(self) -> int:
        return sum(self.outs)


class Part(NamedTuple):
    """Tokens of a batch. ranks: per projection, 0 where the adapter has none; () is base-only."""

    num_tokens: int
    ranks: tuple[int, ...] = ()


class LoraCase:
    """A batch. Pages hold one page more than needed between adapters, and NaN where no weight is.

    scattered: pages in random order, and offsets that are multiples of `offset` only.
    """

    def __init__(
        self,
        shape: Shape,
        parts: Sequence[Part],
        dtype: torch.dtype,
        device: str = "cpu",
        *,
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        self.shape, self.dtype, self.device, self.offset = shape, dtype, device, offset
        self._generator = torch.Generator(device).manual_seed(seed)
        num_tokens = sum(part.num_tokens for part in parts)
        self.x = self._normal(num_tokens, shape.in_features)
        self.base = self._normal(num_tokens, shape.out_features)
        needed = [self._num_pages(part.ranks) for part in parts]
        ids = list(range(sum(needed) + len(parts)))
        random.Random(seed).shuffle(ids)
        self.layer_pages = torch.full(
            (len(ids), shape.page_elems), float("nan"), dtype=dtype, device=device
        )
        self.delta = torch.zeros(num_tokens, shape.out_features, dtype=torch.float64, device=device)
        self.segments: list[Segment] = []
        self.base_rows: list[int] = []
        start = 0
        for part, count in zip(parts, needed, strict=True):
            end = start + part.num_tokens
            if part.ranks:
                page_ids, ids = ids[:count], ids[count:]
                self._add(start, end, part.ranks, page_ids)
            else:
                self.base_rows += range(start, end)
                self.x[start:end] = float("nan")
            start = end

    def _normal(self, rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        generator = self._generator
        values = torch.randn(rows, columns, generator=generator, device=self.device) * scale
        return values.to(self.dtype)

    def _num_pages(self, ranks: Sequence[int]) -> int:
        expands = sum(rank * out for rank, out in zip(ranks, self.shape.outs, strict=False))
        elems = self.offset + sum(ranks) * self.shape.in_features + expands
        return -(-elems // self.shape.page_elems) if ranks else 0

    def _add(self, start: int, end: int, ranks: Sequence[int], page_ids: list[int]) -> None:
        shape = self.shape
        a = self._normal(sum(ranks), shape.in_features, shape.in_features**-0.5)
        flat = [torch.full((self.offset,), float("nan")).to(a), a.view(-1)]
        slices: list[ExpandSlice] = []
        rank_start = out_start = 0
        b_offset = self.offset + a.numel()
        for rank, out in zip(ranks, shape.outs, strict=True):
            if rank:
                b = self._normal(rank, out, rank**-0.5)
                slices.append(ExpandSlice(rank_start, rank, b_offset, out_start, out))
                h = self.x[start:end].double() @ a[rank_start : rank_start + rank].double().T
                self.delta[start:end, out_start : out_start + out] += h @ b.double()
                flat.append(b.view(-1))
                rank_start += rank
                b_offset += b.numel()
            out_start += out
        elems = torch.cat(flat)
        pages = self.layer_pages[page_ids]
        pages.view(-1)[: elems.numel()] = elems
        self.layer_pages[page_ids] = pages
        run = PageRun.of(page_ids)
        plan = GroupPlan(sum(ranks), shape.in_features, self.offset, tuple(slices))
        self.segments.append(Segment(start, end, run, plan))

    def check(self, y: torch.Tensor, base: torch.Tensor) -> None:
        """y: what base became. What is right is within the rounding of y, and of float32 sums."""
        expected = base.double() + self.delta
        wide = y.double()
        assert torch.equal(y[self.base_rows], base[self.base_rows])
        torch.testing.assert_close(
            wide, expected, rtol=torch.finfo(self.dtype).eps, atol=2e-5 * self.atol_scale
        )

    @property
    def atol_scale(self) -> float:
        """Where float32 cancels, errors are those of the addends."""
        return max(1.0, float(self.delta.abs().max()))
