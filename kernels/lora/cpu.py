"""LoRA on CPU: a numba kernel that reads weights in place, page by page.

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
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES, load, store
from kernels.lora.plan import (
    BLOCK_TOKENS,
    MAX_SLICES,
    PLAN_FIELDS,
    PLAN_SLICE_FIELDS,
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    SegmentGroup,
    plan_row,
)

_ROWS = 4
"""Rows of A or B that are widened and used together: each token's input is read once for all."""

_BLOCKS_A_THREAD = 4
"""With fewer, threads take the projections of a block apart: a lone decode row is one block."""

# What the threads are told: counters, sizes, and addresses.
(
    _NEXT,
    _THREAD,
    _NUM_BLOCKS,
    _NUM_PARTS,
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
    PAGES,
    _BLOCKS,
    _PAGE_INDPTR,
    _PAGE_IDS,
    PLANS,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(22)


def supports(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in SUPPORTED_DTYPES


def lora_apply(
    y: torch.Tensor, x: torch.Tensor, layer_pages: torch.Tensor, group: SegmentGroup
) -> None:
    """As `kernels.lora.op.lora_apply`."""
    plans = np.ascontiguousarray(group.plans)
    arguments = lora_arguments(
        group.common,
        int(plans[:, 0].max()),
        max(x.shape[1], y.shape[1]),
        x.shape[0],
        x.shape[1],
        y.stride(0),
        x.stride(0),
        layer_pages.shape[0],
        layer_pages.shape[1],
        y.data_ptr(),
        x.data_ptr(),
        layer_pages.data_ptr(),
        plans.ctypes.data,
    )
    threads.run(lora_worker(x.dtype), np.array(arguments))


def lora_arguments(
    common: LoraSpans,
    max_rank: int,
    width: int,
    num_tokens: int,
    in_features: int,
    y_stride: int,
    x_stride: int,
    num_pages: int,
    page_elems: int,
    y: int,
    x: int,
    pages: int,
    plans: int,
) -> tuple[int, ...]:
    """What a LoRA worker is told. max_rank, width: at least each segment's total rank, and its
    inputs and outputs; from `y` on addresses. Once these are made, no more threads may run than
    torch has now, and what is told for greater ones moves the scratch of these."""
    size = BLOCK_TOKENS * (max_rank + width) + _ROWS * width
    num_threads = torch.get_num_threads()
    _scratch.grow(num_threads * size)
    few = len(common.blocks) < _BLOCKS_A_THREAD * num_threads
    return (
        0,
        0,
        len(common.blocks),
        MAX_SLICES if few else 1,
        len(common.spans),
        num_tokens,
        in_features,
        y_stride,
        x_stride,
        num_pages,
        page_elems,
        max_rank,
        width,
        y,
        x,
        pages,
        common.blocks.ctypes.data,
        common.page_indptr.ctypes.data,
        common.page_ids.ctypes.data,
        plans,
        _scratch.buffer.ctypes.data,
    )


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    run = PageRun.of([0], torch.device("cpu"))
    plan = GroupPlan(1, 1, 0, (ExpandSlice(0, 1, 1, 0, 1),))
    group = SegmentGroup(
        LoraSpans.of([(0, 1)], [run]), np.array([plan_row(plan)], dtype=np.int64), [plan]
    )
    x, y = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    lora_apply(y, x, torch.zeros(1, 2, dtype=dtype), group)


class _Scratch:
    """Buffers kept between calls (one engine thread), grown as needed.

    buffer: float32, for each thread hidden [BLOCK_TOKENS, rank], wide [BLOCK_TOKENS, features] and
    rows [_ROWS, features].
    """

    def __init__(self) -> None:
        self.buffer = np.empty(0, dtype=np.float32)

    def grow(self, size: int) -> None:
        if self.buffer.size < size:
            self.buffer = np.empty(size, dtype=np.float32)


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
def _gather(
    pages: Any, ids: Any, offset: Any, size: Any, target: Any
) -> None:  # pragma: no cover - compiled
    """Widens `size` elements at an offset of the adapter's flat array, across its pages."""
    page_elems = pages.shape[1]
    done = 0
    while done < size:
        at = offset % page_elems
        length = min(size - done, page_elems - at)
        piece = pages[ids[offset // page_elems], at : at + length]
        _widen(piece, target[done : done + length])
        done += length
        offset += length


@compiled
def _dots(rows: Any, column: Any, size: Any, out: Any) -> None:  # pragma: no cover - compiled
    """out[:_ROWS] = rows @ column"""
    a = b = c = d = np.float32(0.0)
    for k in range(size):
        value = column[k]
        a += rows[0, k] * value
        b += rows[1, k] * value
        c += rows[2, k] * value
        d += rows[3, k] * value
    out[0], out[1], out[2], out[3] = a, b, c, d


@compiled
def _axpys(factors: Any, rows: Any, size: Any, total: Any) -> None:  # pragma: no cover - compiled
    """total += factors[:_ROWS] @ rows"""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    for k in range(size):
        total[k] += a * rows[0, k] + b * rows[1, k] + c * rows[2, k] + d * rows[3, k]


@compiled
def _one_token(
    pages: Any,
    ids: Any,
    plan: Any,
    slices: Any,
    ranks: Any,
    in_features: Any,
    x: Any,
    y: Any,
    hidden: Any,
    out: Any,
) -> None:  # pragma: no cover - compiled
    """Rows are used once: straight from their pages. slices, ranks: (first, end) of what is asked
    for. x: [in_features] float32, y: the row of the output, hidden: [rank], out: [features]
    float32."""
    page_elems = pages.shape[1]
    for r in range(ranks[0], ranks[1]):
        total = np.float32(0.0)
        offset, done = plan[1] + r * in_features, 0
        while done < in_features:
            at = offset % page_elems
            length = min(in_features - done, page_elems - at)
            piece = pages[ids[offset // page_elems], at : at + length]
            total += _dot(piece, x[done : done + length])
            done += length
            offset += length
        hidden[r] = total
    for each in range(slices[0], slices[1]):
        field = 3 + each * PLAN_SLICE_FIELDS
        rank_start, rank, b_offset = plan[field], plan[field + 1], plan[field + 2]
        out_start, out_features = plan[field + 3], plan[field + 4]
        out[:out_features] = np.float32(0.0)
        for r in range(rank):
            offset, done = b_offset + r * out_features, 0
            while done < out_features:
                at = offset % page_elems
                length = min(out_features - done, page_elems - at)
                piece = pages[ids[offset // page_elems], at : at + length]
                _axpy(hidden[rank_start + r], piece, out[done : done + length])
                done += length
                offset += length
        _add(y[out_start : out_start + out_features], out)


@compiled
def _add(target: Any, addend: Any) -> None:  # pragma: no cover - compiled
    for k in range(target.size):
        store(target, k, load(target[k]) + addend[k])


@cache
def lora_worker(dtype: torch.dtype) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes blocks, or parts of them, until none is left.

        wide holds a block's inputs, then its output of one projection. Scratch is indexed whole: a
        slice of a slice would hide from the compiler that it is contiguous.
        """
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_segments, in_features = a[_NUM_SEGMENTS], a[_IN_FEATURES]
        max_rank, width = a[_MAX_RANK], a[_WIDTH]
        y = threads.array(a[_Y], like, (a[_NUM_TOKENS] * a[_Y_STRIDE],))
        x = threads.array(a[_X], like, (a[_NUM_TOKENS] * a[_X_STRIDE],))
        pages = threads.array(a[PAGES], like, (a[_NUM_PAGES], a[_PAGE_ELEMS]))
        blocks = threads.array(a[_BLOCKS], a, (a[_NUM_BLOCKS], 3))
        page_indptr = threads.array(a[_PAGE_INDPTR], a, (num_segments + 1,))
        page_ids = threads.array(a[_PAGE_IDS], a, (page_indptr[num_segments],))
        plans = threads.array(a[PLANS], a, (num_segments, PLAN_FIELDS))
        size = BLOCK_TOKENS * (max_rank + width) + _ROWS * width
        at = a[_SCRATCH] + threads.take(a, _THREAD) * size * 4
        hidden = threads.array(at, FLOATS, (BLOCK_TOKENS, max_rank))
        at += BLOCK_TOKENS * max_rank * 4
        wide = threads.array(at, FLOATS, (BLOCK_TOKENS, width))
        at += BLOCK_TOKENS * width * 4
        rows = threads.array(at, FLOATS, (_ROWS, width))
        while True:
            item = threads.take(a, _NEXT)
            if item >= a[_NUM_BLOCKS] * a[_NUM_PARTS]:
                return
            block = item // a[_NUM_PARTS]
            segment, start, num_tokens = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            plan = plans[segment]
            total_rank, num_slices = plan[0], plan[2]
            if total_rank == 0:
                continue
            slices, ranks = (0, num_slices), (0, total_rank)
            if a[_NUM_PARTS] > 1:
                part = item % a[_NUM_PARTS]
                if part >= num_slices:
                    continue
                field = 3 + part * PLAN_SLICE_FIELDS
                slices = (part, part + 1)
                ranks = (plan[field], plan[field] + plan[field + 1])
            ids = page_ids[page_indptr[segment] : page_indptr[segment + 1]]
            for t in range(num_tokens):
                first = (start + t) * a[_X_STRIDE]
                _widen(x[first : first + in_features], wide[t, :in_features])
            if num_tokens == 1:
                first = start * a[_Y_STRIDE]
                target = y[first : first + a[_Y_STRIDE]]
                _one_token(
                    pages,
                    ids,
                    plan,
                    slices,
                    ranks,
                    in_features,
                    wide[0],
                    target,
                    hidden[0],
                    rows[0],
                )
                continue
            whole = ranks[1] - (ranks[1] - ranks[0]) % _ROWS
            for r in range(ranks[0], whole, _ROWS):
                for each in range(_ROWS):
                    _gather(pages, ids, plan[1] + (r + each) * in_features, in_features, rows[each])
                for t in range(num_tokens):
                    _dots(rows, wide[t], in_features, hidden[t, r : r + _ROWS])
            for r in range(whole, ranks[1]):
                _gather(pages, ids, plan[1] + r * in_features, in_features, rows[0])
                for t in range(num_tokens):
                    hidden[t, r] = _dot(rows[0], wide[t, :in_features])
            for each_slice in range(slices[0], slices[1]):
                field = 3 + each_slice * PLAN_SLICE_FIELDS
                rank_start, rank, b_offset = plan[field], plan[field + 1], plan[field + 2]
                out_start, out_features = plan[field + 3], plan[field + 4]
                for t in range(num_tokens):
                    wide[t, :out_features] = np.float32(0.0)
                whole = rank - rank % _ROWS
                for r in range(0, whole, _ROWS):
                    for each in range(_ROWS):
                        offset = b_offset + (r + each) * out_features
                        _gather(pages, ids, offset, out_features, rows[each])
                    for t in range(num_tokens):
                        factors = hidden[t, rank_start + r : rank_start + r + _ROWS]
                        _axpys(factors, rows, out_features, wide[t])
                for r in range(whole, rank):
                    _gather(pages, ids, b_offset + r * out_features, out_features, rows[0])
                    for t in range(num_tokens):
                        _axpy(hidden[t, rank_start + r], rows[0], wide[t, :out_features])
                for t in range(num_tokens):
                    first = (start + t) * a[_Y_STRIDE] + out_start
                    _add(y[first : first + out_features], wide[t])

    return work
