"""LoRA of short segments on CPU: numba kernels that read weights in place, page by page.

A decode step of many adapters is many tiny products; through a library each costs more in overhead
than in bytes. One call does a whole projection group for all segments, accumulating in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import SUPPORTED_DTYPES, load, store
from kernels.lora.plan import (
    PLAN_FIELDS,
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

# What the threads are told: counters, sizes, and addresses.
(
    _NEXT,
    _THREAD,
    _NUM_SEGMENTS,
    _NUM_TOKENS,
    _IN_FEATURES,
    _Y_STRIDE,
    _X_STRIDE,
    _NUM_PAGES,
    _PAGE_ELEMS,
    _MAX_RANK,
    _WIDTH,
    _Y,
    _X,
    _PAGES,
    _SPANS,
    _PAGE_INDPTR,
    _PAGE_IDS,
    _PLANS,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(20)


def supports(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in SUPPORTED_DTYPES


def lora_short_segments(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, group: SegmentGroup
) -> None:
    """As `kernels.lora.op.lora_apply`, for the segments of at most MAX_TOKENS tokens."""
    common, rank = group.common, int(group.plans[:, 0].max())
    page_elems, width = layer_pages.shape[1], max(x.shape[1], y.shape[1])
    plans = np.ascontiguousarray(group.plans)
    _scratch.grow(torch.get_num_threads() * (MAX_TOKENS * (rank + width) + page_elems))
    arguments = _scratch.arguments
    arguments[:] = (
        0,
        0,
        len(common.spans),
        x.shape[0],
        x.shape[1],
        y.stride(0),
        x.stride(0),
        layer_pages.shape[0],
        page_elems,
        rank,
        width,
        y.data_ptr(),
        x.data_ptr(),
        layer_pages.data_ptr(),
        common.spans.ctypes.data,
        common.page_indptr.ctypes.data,
        common.page_ids.ctypes.data,
        plans.ctypes.data,
        _scratch.buffer.ctypes.data,
    )
    threads.run(_worker(x.dtype is torch.bfloat16), arguments)


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    run = PageRun.of([0], torch.device("cpu"))
    plan = GroupPlan(1, 1, 0, (ExpandSlice(0, 1, 1, 0, 1),))
    group = SegmentGroup(
        LoraSpans.of([(0, 1)], [run]), np.array([plan_row(plan)], dtype=np.int64), [plan]
    )
    x, y = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    lora_short_segments(y, x, torch.zeros(1, 2, dtype=dtype), group)


class _Scratch:
    """Buffers kept between calls (one engine thread), grown as needed.

    buffer: float32, for each thread hidden [MAX_TOKENS, rank], wide [MAX_TOKENS, features] and
    row32 [page_elems].
    """

    def __init__(self) -> None:
        self.buffer = np.empty(0, dtype=np.float32)
        self.arguments = np.zeros(_NUM_ARGUMENTS, dtype=np.int64)

    def grow(self, size: int) -> None:
        if self.buffer.size < size:
            self.buffer = np.empty(size, dtype=np.float32)


_scratch = _Scratch()
_FLOATS = np.empty(0, dtype=np.float32)
_BITS = np.empty(0, dtype=np.uint16)


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


@cache
def _worker(is_narrow: bool) -> Any:
    like = _BITS if is_narrow else _FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes segments until none is left. Rows of A and B may cross pages: they are read in
        pieces.

        wide holds a segment's inputs, then its output of one projection; row32 a piece of a row,
        widened once for all tokens. Scratch is indexed whole: a slice of a slice would hide from
        the compiler that it is contiguous.
        """
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_segments, in_features, page_elems = a[_NUM_SEGMENTS], a[_IN_FEATURES], a[_PAGE_ELEMS]
        max_rank, width = a[_MAX_RANK], a[_WIDTH]
        y = threads.array(a[_Y], like, (a[_NUM_TOKENS] * a[_Y_STRIDE],))
        x = threads.array(a[_X], like, (a[_NUM_TOKENS] * a[_X_STRIDE],))
        pages = threads.array(a[_PAGES], like, (a[_NUM_PAGES], page_elems))
        spans = threads.array(a[_SPANS], a, (num_segments, 2))
        page_indptr = threads.array(a[_PAGE_INDPTR], a, (num_segments + 1,))
        page_ids = threads.array(a[_PAGE_IDS], a, (page_indptr[num_segments],))
        plans = threads.array(a[_PLANS], a, (num_segments, PLAN_FIELDS))
        size = MAX_TOKENS * (max_rank + width) + page_elems
        at = a[_SCRATCH] + threads.take(a, _THREAD) * size * 4
        hidden = threads.array(at, _FLOATS, (MAX_TOKENS, max_rank))
        at += MAX_TOKENS * max_rank * 4
        wide = threads.array(at, _FLOATS, (MAX_TOKENS, width))
        at += MAX_TOKENS * width * 4
        row32 = threads.array(at, _FLOATS, (page_elems,))
        while True:
            segment = threads.take(a, _NEXT)
            if segment >= num_segments:
                return
            start, num_tokens = spans[segment, 0], spans[segment, 1] - spans[segment, 0]
            plan = plans[segment]
            total_rank, a_offset, num_slices = plan[0], plan[1], plan[2]
            if num_tokens > MAX_TOKENS or total_rank == 0:
                continue
            ids = page_ids[page_indptr[segment] : page_indptr[segment + 1]]
            for t in range(num_tokens):
                first = (start + t) * a[_X_STRIDE]
                _widen(x[first : first + in_features], wide[t, :in_features])
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
                field = 3 + each * PLAN_SLICE_FIELDS
                rank_start, rank, b_offset = plan[field], plan[field + 1], plan[field + 2]
                out_start, out_features = plan[field + 3], plan[field + 4]
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
                    first = (start + t) * a[_Y_STRIDE] + out_start
                    target = y[first : first + out_features]
                    for k in range(out_features):
                        store(target, k, load(target[k]) + wide[t, k])

    return work
