"""The two products of a block of tokens with one adapter's matrices, which lie in pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu import threads
from kernels.cpu.compile import compiled, compiled_in_order
from kernels.cpu.floats import FLOATS, load, store
from kernels.lora.cpu_tiles import (
    COLUMNS,
    LINE,
    add_line,
    expand_1,
    expand_2,
    expand_4,
    expand_6,
    shrink_1x1,
    shrink_1x8,
    shrink_2x1,
    shrink_2x8,
    shrink_4x1,
    shrink_4x4,
    shrink_6x1,
    shrink_6x4,
    widen_line,
)
from kernels.lora.plan import BLOCK_TOKENS

_MOST_TOKENS = 6  # of a tile


@compiled
def scratch_size(max_rank: Any, width: Any) -> Any:
    """float32 of one thread, whole vectors: rows' addresses and numbers [rank, 2] int64; sums of a
    tile; intermediates, of each tile [rank, tokens]; inputs [tokens, width]; rows that were copied
    [rank, width]."""
    size = 4 * max_rank + _MOST_TOKENS * COLUMNS + BLOCK_TOKENS * (max_rank + width)
    return (size + max_rank * width + 15) // 16 * 16


@compiled
def _parts(scratch: Any, max_rank: Any, width: Any) -> Any:
    """The addresses of these, one after the other."""
    sums = scratch + 4 * max_rank * 4
    h = sums + _MOST_TOKENS * COLUMNS * 4
    wide = h + BLOCK_TOKENS * max_rank * 4
    return scratch, sums, h, wide, wide + BLOCK_TOKENS * width * 4


@compiled
def shrink(
    x: Any,
    x_stride: Any,
    pages: Any,
    ids: Any,
    a_offset: Any,
    first_rank: Any,
    end_rank: Any,
    in_features: Any,
    num_tokens: Any,
    max_rank: Any,
    width: Any,
    scratch: Any,
) -> None:  # pragma: no cover - compiled
    """Intermediates [first_rank, end_rank) of a block. x: from its first token's first input; ids:
    the adapter's pages; scratch: address."""
    _, _, all_h, wide_at, copy_at = _parts(scratch, max_rank, width)
    whole = in_features // LINE * LINE
    for t in range(num_tokens):
        source_at = x.ctypes.data + t * x_stride * x.itemsize
        target_at = wide_at + t * in_features * 4
        for k in range(0, whole, LINE):
            widen_line(x, target_at + k * 4, source_at + k * x.itemsize)
        wide = threads.array(target_at, FLOATS, (in_features,))
        for k in range(whole, in_features):
            wide[k] = load(x[t * x_stride + k])
    r = first_rank
    while r < end_rank:
        count, rows_at = _rows(pages, ids, a_offset + r * in_features, in_features, copy_at)
        count = min(count, end_rank - r)
        done = 0
        while done < num_tokens:
            tokens = _tile_tokens(num_tokens - done)
            x_at = wide_at + done * in_features * 4
            h_at = all_h + (done * max_rank + r * tokens) * 4
            if whole > 0:
                _shrink_rows(pages, rows_at, in_features, x_at, whole, h_at, tokens, count)
            if whole < in_features:
                _shrink_rest(pages, rows_at, in_features, x_at, whole, h_at, tokens, count)
            done += tokens
        r += count


@compiled
def expand(
    y: Any,
    y_stride: Any,
    pages: Any,
    ids: Any,
    b_offset: Any,
    first_rank: Any,
    num_ranks: Any,
    out_features: Any,
    num_tokens: Any,
    max_rank: Any,
    width: Any,
    scratch: Any,
) -> None:  # pragma: no cover - compiled
    """Adds a projection's share to y, from the intermediates that start with first_rank. y: from
    the block's first token's first output of the projection."""
    runs_at, sums_at, all_h, _, copies_at = _parts(scratch, max_rank, width)
    runs = threads.array(runs_at, ids, (max_rank, 2))
    num_runs, r = 0, 0
    while r < num_ranks:
        copy_at = copies_at + r * width * 4
        count, rows_at = _rows(pages, ids, b_offset + r * out_features, out_features, copy_at)
        count = min(count, num_ranks - r)
        runs[num_runs, 0], runs[num_runs, 1] = rows_at, count
        num_runs += 1
        r += count
    for first in range(0, out_features, COLUMNS):
        columns = min(COLUMNS, out_features - first)
        done = 0
        while done < num_tokens:
            tokens = _tile_tokens(num_tokens - done)
            h_at = all_h + (done * max_rank + first_rank * tokens) * 4
            threads.array(sums_at, FLOATS, (tokens * COLUMNS,))[:] = np.float32(0.0)
            for run in range(num_runs):
                rows_at, count = runs[run, 0] + first * pages.itemsize, runs[run, 1]
                if columns == COLUMNS:
                    _expand_rows(pages, rows_at, out_features, h_at, count, sums_at, tokens)
                else:
                    _expand_rest(
                        pages, rows_at, out_features, h_at, count, sums_at, tokens, columns
                    )
                h_at += count * tokens * 4
            for t in range(tokens):
                start = (done + t) * y_stride + first
                if columns == COLUMNS:
                    for k in range(0, COLUMNS, LINE):
                        target_at = y.ctypes.data + (start + k) * y.itemsize
                        add_line(y, target_at, sums_at + (t * COLUMNS + k) * 4)
                else:
                    addend = threads.array(sums_at + t * COLUMNS * 4, FLOATS, (columns,))
                    for k in range(columns):
                        store(y, start + k, load(y[start + k]) + addend[k])
            done += tokens


@compiled
def _tile_tokens(left: Any) -> Any:  # pragma: no cover - compiled
    """How many of so many tokens the next tile takes."""
    if left >= 6:
        return 6
    if left >= 4:
        return 4
    return 2 if left >= 2 else 1


@compiled
def _rows(
    pages: Any, ids: Any, offset: Any, size: Any, copy_at: Any
) -> Any:  # pragma: no cover - compiled
    """How many rows of `size` elements lie one after the other from an offset of the adapter's flat
    array on, and their address. One that goes on in another page is copied."""
    page_elems = pages.shape[1]
    page, at = offset // page_elems, offset % page_elems
    count = (page_elems - at) // size
    item_bytes = pages.itemsize
    if count > 0:
        return count, pages.ctypes.data + (ids[page] * page_elems + at) * item_bytes
    copy = threads.array(copy_at, pages, (size,))
    done = 0
    while done < size:
        length = min(size - done, page_elems - at)
        source = pages[ids[page], at : at + length]
        target = copy[done : done + length]
        for k in range(length):
            target[k] = source[k]
        done += length
        page, at = page + 1, 0
    return 1, copy_at


@compiled_in_order
def _shrink_rows(
    like: Any, rows: Any, stride: Any, x: Any, size: Any, h: Any, tokens: Any, count: Any
) -> None:  # pragma: no cover - compiled
    """h[count, tokens]; size: whole LINEs."""
    r, step = 0, 4 if tokens >= 4 else 8
    row_bytes = stride * like.itemsize
    while r + step <= count:
        rows_at, h_at = rows + r * row_bytes, h + r * tokens * 4
        if tokens == 6:
            shrink_6x4(like, rows_at, stride, x, stride, size, h_at)
        elif tokens == 4:
            shrink_4x4(like, rows_at, stride, x, stride, size, h_at)
        elif tokens == 2:
            shrink_2x8(like, rows_at, stride, x, stride, size, h_at)
        else:
            shrink_1x8(like, rows_at, stride, x, stride, size, h_at)
        r += step
    while r < count:
        rows_at, h_at = rows + r * row_bytes, h + r * tokens * 4
        if tokens == 6:
            shrink_6x1(like, rows_at, stride, x, stride, size, h_at)
        elif tokens == 4:
            shrink_4x1(like, rows_at, stride, x, stride, size, h_at)
        elif tokens == 2:
            shrink_2x1(like, rows_at, stride, x, stride, size, h_at)
        else:
            shrink_1x1(like, rows_at, stride, x, stride, size, h_at)
        r += 1


@compiled_in_order
def _shrink_rest(
    like: Any, rows: Any, size: Any, x: Any, first: Any, h: Any, tokens: Any, count: Any
) -> None:  # pragma: no cover - compiled
    """Inputs from `first` on, which fill no LINE."""
    weights = threads.array(rows, like, (count, size))
    inputs = threads.array(x, FLOATS, (tokens, size))
    sums = threads.array(h, FLOATS, (count, tokens))
    for r in range(count):
        for t in range(tokens):
            total = np.float32(0.0) if first == 0 else sums[r, t]
            for k in range(first, size):
                total += load(weights[r, k]) * inputs[t, k]
            sums[r, t] = total


@compiled_in_order
def _expand_rows(
    like: Any, rows: Any, stride: Any, h: Any, count: Any, sums: Any, tokens: Any
) -> None:  # pragma: no cover - compiled
    """sums[tokens, COLUMNS] += h[count, tokens].T @ rows[count, :COLUMNS]"""
    if tokens == 6:
        expand_6(like, rows, stride, h, count, sums)
    elif tokens == 4:
        expand_4(like, rows, stride, h, count, sums)
    elif tokens == 2:
        expand_2(like, rows, stride, h, count, sums)
    else:
        expand_1(like, rows, stride, h, count, sums)


@compiled_in_order
def _expand_rest(
    like: Any, rows: Any, stride: Any, h: Any, count: Any, sums: Any, tokens: Any, columns: Any
) -> None:  # pragma: no cover - compiled
    """As `_expand_rows`, of fewer columns."""
    factors = threads.array(h, FLOATS, (count, tokens))
    totals = threads.array(sums, FLOATS, (tokens, COLUMNS))
    for r in range(count):
        weights = threads.array(rows + r * stride * like.itemsize, like, (columns,))
        for t in range(tokens):
            for k in range(columns):
                totals[t, k] += factors[r, t] * load(weights[k])
