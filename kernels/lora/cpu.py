"""LoRA of short segments on CPU: numba kernels that read weights in place, page by page.

A decode step of many adapters is many tiny products; through a library each costs more in overhead
than in bytes. One call does a whole projection group for all segments, accumulating in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.cpu.compile import compiled
from kernels.cpu.floats import SUPPORTED_DTYPES, bits_of, load, store
from kernels.lora.plan import (
    PLAN_SLICE_FIELDS,
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    SegmentGroup,
    plan_row,
)

MAX_TOKENS = 16
"""Longer segments have work enough for a library's matrix product."""


def supports(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in SUPPORTED_DTYPES


def lora_short_segments(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, group: SegmentGroup
) -> None:
    """As `kernels.lora.op.lora_apply`, for the segments of at most MAX_TOKENS tokens."""
    rank = int(group.plans[:, 0].max())
    _scratch.grow(rank, max(x.shape[1], y.shape[1]), layer_pages.shape[1])
    _lora(
        bits_of(y),
        bits_of(x),
        bits_of(layer_pages),
        group.common.spans,
        group.common.page_indptr,
        group.common.page_ids,
        group.plans,
        _scratch.hidden,
        _scratch.wide,
        _scratch.row,
        MAX_TOKENS,
    )


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for a pool of this dtype, or loads what an earlier process compiled. Seconds the
    first time ever: call it before the first request."""
    if dtype not in SUPPORTED_DTYPES:
        return
    run = PageRun.of([0], torch.device("cpu"))
    plan = GroupPlan(1, 1, 0, (ExpandSlice(0, 1, 1, 0, 1),))
    group = SegmentGroup(
        LoraSpans.of([(0, 1)], [run]), np.array([plan_row(plan)], dtype=np.int64), [plan]
    )
    x, y = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    lora_short_segments(y, x, torch.zeros(1, 2, dtype=dtype), group)


class _Scratch:
    """float32 buffers kept between calls (one engine thread), grown as needed."""

    def __init__(self) -> None:
        self.hidden = np.empty((MAX_TOKENS, 0), dtype=np.float32)
        self.wide = np.empty((MAX_TOKENS, 0), dtype=np.float32)
        self.row = np.empty(0, dtype=np.float32)

    def grow(self, rank: int, features: int, page_elems: int) -> None:
        if self.hidden.shape[1] < rank:
            self.hidden = np.empty((MAX_TOKENS, rank), dtype=np.float32)
        if self.wide.shape[1] < features:
            self.wide = np.empty((MAX_TOKENS, features), dtype=np.float32)
        if self.row.size < page_elems:
            self.row = np.empty(page_elems, dtype=np.float32)


_scratch = _Scratch()


@compiled
def _dot(row: Any, column: Any) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(column.size):
        total += load(row[k]) * column[k]
    return total


@compiled
def _axpy(factor: Any, row: Any, total: Any) -> None:  # pragma: no cover - compiled
    for k in range(total.size):
        total[k] += factor * load(row[k])


@compiled
def _widen(source: Any, target: Any) -> None:  # pragma: no cover - compiled
    for k in range(target.size):
        target[k] = load(source[k])


@compiled
def _lora(
    y: Any,
    x: Any,
    pages: Any,
    spans: Any,
    page_indptr: Any,
    page_ids: Any,
    plans: Any,
    hidden: Any,
    wide: Any,
    row32: Any,
    max_tokens: int,
) -> None:  # pragma: no cover - compiled
    """One program for all segments. Rows of A and B may cross pages: they are read in pieces.

    hidden: [max_tokens, total_rank]. wide: [max_tokens, features] float32, the segment's inputs,
    then its output of one projection. row32: [page_elems]: a piece of a row, widened once for all
    tokens. Scratch is indexed whole: a slice of a slice would hide from the compiler that it is
    contiguous.
    """
    page_elems = pages.shape[1]
    in_features = x.shape[1]
    for segment in range(spans.shape[0]):
        start, num_tokens = spans[segment, 0], spans[segment, 1] - spans[segment, 0]
        plan = plans[segment]
        total_rank, a_offset, num_slices = plan[0], plan[1], plan[2]
        if num_tokens > max_tokens or total_rank == 0:
            continue
        ids = page_ids[page_indptr[segment] : page_indptr[segment + 1]]
        for t in range(num_tokens):
            _widen(x[start + t], wide[t, :in_features])
        for r in range(total_rank):
            for t in range(num_tokens):
                hidden[t, r] = 0.0
            offset, done = a_offset + r * in_features, 0
            while done < in_features:
                at = offset % page_elems
                length = min(in_features - done, page_elems - at)
                piece = pages[ids[offset // page_elems], at : at + length]
                if num_tokens == 1:
                    hidden[0, r] += _dot(piece, wide[0, done : done + length])
                else:
                    _widen(piece, row32[:length])
                    for t in range(num_tokens):
                        hidden[t, r] += _dot(row32[:length], wide[t, done : done + length])
                done += length
                offset += length
        for each in range(num_slices):
            first = 3 + each * PLAN_SLICE_FIELDS
            rank_start, rank, b_offset = plan[first], plan[first + 1], plan[first + 2]
            out_start, out_features = plan[first + 3], plan[first + 4]
            for t in range(num_tokens):
                wide[t, :out_features] = 0.0
            for r in range(rank):
                offset, done = b_offset + r * out_features, 0
                while done < out_features:
                    at = offset % page_elems
                    length = min(out_features - done, page_elems - at)
                    piece = pages[ids[offset // page_elems], at : at + length]
                    if num_tokens == 1:
                        _axpy(hidden[0, rank_start + r], piece, wide[0, done : done + length])
                    else:
                        _widen(piece, row32[:length])
                        for t in range(num_tokens):
                            _axpy(
                                hidden[t, rank_start + r],
                                row32[:length],
                                wide[t, done : done + length],
                            )
                    done += length
                    offset += length
            for t in range(num_tokens):
                target = y[start + t, out_start : out_start + out_features]
                for k in range(out_features):
                    store(target, k, load(target[k]) + wide[t, k])
