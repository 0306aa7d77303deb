"""The two products of a block of tokens with one adapter's matrices, which lie in pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu import threads
from kernels.cpu.compile import compiled, compiled_in_order
from kernels.cpu.floats import FLOATS, load, store
from kernels.lora.cpu_tiles import (
    COLUMNS,
    LANES,
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
)
from kernels.lora.plan import BLOCK_TOKENS


@compiled
def scratch_size(max_rank: Any, width: Any) -> Any:
    """float32 of one thread: intermediates, of each tile [rank, tokens]; inputs [tokens, width],
    then outputs, of each tile and COLUMNS [tokens, COLUMNS]; a row that was copied [width]."""
    return BLOCK_TOKENS * (max_rank + width + COLUMNS) + width


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
    wide_at = scratch + BLOCK_TOKENS * max_rank * 4
    copy_at = wide_at + BLOCK_TOKENS * (width + COLUMNS) * 4
    for t in range(num_tokens):
        wide = threads.array(wide_at + t * in_features * 4, FLOATS, (in_features,))
        source = x[t * x_stride : t * x_stride + in_features]
        for k in range(in_features):
            wide[k] = load(source[k])
    whole = in_features // LANES * LANES
    r = first_rank
    while r < end_rank:
        count, rows_at = _rows(pages, ids, a_offset + r * in_features, in_features, copy_at)
        count = min(count, end_rank - r)
        done = 0
        while done < num_tokens:
            tokens = _tile_tokens(num_tokens - done)
            x_at = wide_at + done * in_features * 4
            h_at = scratch + (done * max_rank + r * tokens) * 4
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
    sums_at = scratch + BLOCK_TOKENS * max_rank * 4
    copy_at = sums_at + BLOCK_TOKENS * (width + COLUMNS) * 4
    num_parts = (out_features + COLUMNS - 1) // COLUMNS
    size = num_parts * COLUMNS  # of a token's sums
    threads.array(sums_at, FLOATS, (num_tokens * size,))[:] = np.float32(0.0)
    r = 0
    while r < num_ranks:
        count, rows_at = _rows(pages, ids, b_offset + r * out_features, out_features, copy_at)
        count = min(count, num_ranks - r)
        done = 0
        while done < num_tokens:
            tokens = _tile_tokens(num_tokens - done)
            h_at = scratch + (done * max_rank + (first_rank + r) * tokens) * 4
            tile_at = sums_at + done * size * 4
            _expand_rows(pages, rows_at, out_features, h_at, count, tile_at, tokens)
            done += tokens
        r += count
    done = 0
    while done < num_tokens:
        tokens = _tile_tokens(num_tokens - done)
        for part in range(num_parts):
            first = part * COLUMNS
            columns = min(COLUMNS, out_features - first)
            for t in range(tokens):
                at = sums_at + (done * size + (part * tokens + t) * COLUMNS) * 4
                addend = threads.array(at, FLOATS, (columns,))
                start = (done + t) * y_stride + first
                target = y[start : start + columns]
                for k in range(columns):
                    store(target, k, load(target[k]) + addend[k])
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
    """h[count, tokens]; size: whole vectors."""
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
    """Inputs from `first` on, which fill no vector."""
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
    like: Any, rows: Any, size: Any, h: Any, count: Any, sums: Any, tokens: Any
) -> None:  # pragma: no cover - compiled
    """sums: [parts, tokens, COLUMNS] += h[count, tokens].T @ rows[count, size]"""
    num_whole = size // COLUMNS
    for part in range(num_whole):
        rows_at = rows + part * COLUMNS * like.itemsize
        sums_at = sums + part * tokens * COLUMNS * 4
        if tokens == 6:
            expand_6(like, rows_at, size, h, count, sums_at)
        elif tokens == 4:
            expand_4(like, rows_at, size, h, count, sums_at)
        elif tokens == 2:
            expand_2(like, rows_at, size, h, count, sums_at)
        else:
            expand_1(like, rows_at, size, h, count, sums_at)
    first = num_whole * COLUMNS
    if first == size:
        return
    weights = threads.array(rows, like, (count, size))
    factors = threads.array(h, FLOATS, (count, tokens))
    rest = threads.array(sums + num_whole * tokens * COLUMNS * 4, FLOATS, (tokens, COLUMNS))
    for r in range(count):
        for t in range(tokens):
            for k in range(size - first):
                rest[t, k] += factors[r, t] * load(weights[r, first + k])
