"""Attention of prefill chunks on CPU: blocks of queries against blocks of keys, in their pages.

Queries of the heads that share a key head stand as rows of one block. For PANEL keys at a time the
block's scores, their weights and its sums are products of the base GEMM's tiles; the softmax goes
along with them (Milakov and Gimelshein 2018).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.attention.metadata import AttentionMetadata
from kernels.attention.softmax import exponentials, highest_of
from kernels.attention.turn import turn_rows, turn_tile
from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp, tanh
from kernels.cpu.floats import BITS, FLOATS, load, store
from kernels.cpu.scratch import Scratch
from kernels.cpu.vectors import LINE, gather, spread
from kernels.linear.cpu import is_best
from kernels.linear.tile import PANEL, wide_tile_12
from kernels.linear.tiling import SIZES

_TILE = SIZES[-1]
assert PANEL == LINE  # sums of values are spread, as values are
_MAX_TILES = 8
"""Tiles of rows that share a block of keys once it is widened and turned."""

(
    _NEXT,
    _THREAD,
    _NUM_BLOCKS,
    _NUM_TOKENS,
    _NUM_KV_HEADS,
    _NUM_PAGES,
    _PAGE_TOKENS,
    _NUM_TABLES,
    _MAX_BLOCKS,
    WINDOW,
    _OUT,
    _Q,
    KV_PAGES,
    _BLOCKS,
    _TABLES,
    _FACTORS,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(18)

NO_WINDOW = 1 << 40


def supports(q: torch.Tensor) -> bool:
    """Of whatever kernels.attention.cpu supports."""
    return q.dtype is torch.bfloat16 and is_best()


def query_blocks(metadata: AttentionMetadata, group: int) -> np.ndarray[Any, Any]:
    """[n, 4] int64: what one task takes, for each key head: batch row of its first token, tokens,
    that token's position, the row of the sequence's block table.

    group: heads that share a key head
    """
    step = max(1, _MAX_TILES * _TILE // group)
    return np.array(
        [
            (row, min(step, chunk.end - row), chunk.seq_len - chunk.end + row, index)
            for index, chunk in enumerate(metadata.prefill)
            for row in range(chunk.start, chunk.end, step)
        ],
        dtype=np.int64,
    ).reshape(-1, 4)


def prefill_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> None:
    """As `kernels.attention.naive.paged_attention`, for the rows of prefill chunks of `out`.

    out, q, kv_pages: contiguous
    """
    num_pages, _, page_tokens, num_kv_heads, head_dim = kv_pages.shape
    group = q.shape[1] // num_kv_heads
    blocks = query_blocks(metadata, group)
    assert metadata.ragged is not None
    factors = np.array([scale, soft_cap or 0.0], dtype=np.float32)
    arguments = prefill_arguments(
        blocks,
        q.shape[0],
        q.shape[1],
        num_kv_heads,
        head_dim,
        num_pages,
        page_tokens,
        metadata.ragged.block_tables,
        sliding_window or NO_WINDOW,
        out.data_ptr(),
        q.data_ptr(),
        kv_pages.data_ptr(),
        factors.ctypes.data,
    )
    threads.run(prefill_worker(head_dim, group), np.array(arguments))


def prefill_arguments(
    blocks: np.ndarray[Any, Any],
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_pages: int,
    page_tokens: int,
    block_tables: torch.Tensor,
    window: int,
    out: int,
    q: int,
    kv_pages: int,
    factors: int,
) -> tuple[int, ...]:
    """What a prefill worker is told. blocks: `query_blocks`; block_tables: [chunks, max_blocks]
    int64; window: NO_WINDOW for none; then addresses; factors: of scale and soft cap (0: none),
    float32. Once these are made, no more threads may run than torch has now."""
    size = torch.get_num_threads() * _scratch_size(head_dim, num_heads // num_kv_heads)
    return (
        0,
        0,
        len(blocks),
        num_tokens,
        num_kv_heads,
        num_pages,
        page_tokens,
        block_tables.shape[0],
        block_tables.shape[1],
        window,
        out,
        q,
        kv_pages,
        blocks.ctypes.data,
        block_tables.data_ptr(),
        factors,
        _scratch.address(size),
    )


def _num_tiles(group: int) -> int:
    """A single token of many heads may need more than _MAX_TILES."""
    return max(_MAX_TILES, -(-group // _TILE))


def _scratch_size(head_dim: int, group: int) -> int:
    """float32 of one thread: queries and sums of a block, highest scores and totals, a panel of
    keys, panels of values, a tile of scores and one of weights, addresses of rows."""
    rows, wide_dim = _num_tiles(group) * _TILE, -(-head_dim // PANEL) * PANEL
    keys_and_values = (head_dim + wide_dim) * PANEL
    return rows * (head_dim + wide_dim + 2) + keys_and_values + 2 * _TILE * PANEL + 2 * PANEL + 64


_scratch = Scratch()


def warm_up(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Compiles for this shape, or loads what an earlier process compiled."""
    if is_best():
        prefill_worker(head_dim, num_heads // num_kv_heads)()


@compiled
def _weigh(
    scores: Any, lower: Any, upper: Any, soft_cap: Any, before: Any
) -> Any:  # pragma: no cover - compiled
    """In place, one row's keys [lower, upper) of a panel. Returns the highest score so far and the
    sum of the panel's weights, which are relative to it; other keys weigh nothing."""
    zero = np.float32(0.0)
    if soft_cap > zero:
        for k in range(PANEL):
            scores[k] = soft_cap * tanh(scores[k] / soft_cap)
    scores[:lower] = np.float32(-np.inf)
    scores[upper:] = np.float32(-np.inf)
    at = scores.ctypes.data
    now = max(before, highest_of(at, PANEL))
    total = exponentials(at, PANEL, now)
    scores[:lower] = zero
    scores[upper:] = zero
    return now, total


@compiled
def _turn_any(target: Any, rows: Any, factor: Any) -> None:  # pragma: no cover - compiled
    """As `turn_rows`, for rows that are not whole LINEs."""
    for row in range(target.shape[1]):
        source = threads.array(rows[row], BITS, (target.shape[0],))
        for k in range(source.size):
            target[k, row] = load(source[k]) * factor


@cache
def prefill_worker(head_dim: int, group: int) -> Any:
    """For heads of `head_dim` elements, `group` of which share a key head."""
    num_panels = -(-head_dim // PANEL)
    max_tiles = _num_tiles(group)
    size = _scratch_size(head_dim, group)
    # Where each part of a thread's scratch begins, in float32; those that tiles load come first.
    sums_start = max_tiles * _TILE * head_dim
    keys_start = sums_start + max_tiles * _TILE * num_panels * PANEL
    values_start = keys_start + head_dim * PANEL
    scores_start = values_start + num_panels * PANEL * PANEL
    weights_start = scores_start + _TILE * PANEL
    highest_start = weights_start + _TILE * PANEL
    totals_start = highest_start + max_tiles * _TILE
    rows_start = totals_start + max_tiles * _TILE
    has_whole_lines = head_dim % LINE == 0

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes blocks of one key head until none is left."""
        zero, one = np.float32(0.0), np.float32(1.0)
        a = threads.told(pointer, _NUM_ARGUMENTS)
        kv_heads, num_blocks = a[_NUM_KV_HEADS], a[_NUM_BLOCKS]
        page_tokens, window = a[_PAGE_TOKENS], a[WINDOW]
        shape = (a[_NUM_TOKENS], kv_heads, group, head_dim)
        out = threads.array(a[_OUT], BITS, shape)
        kv_shape = (a[_NUM_PAGES], 2, page_tokens, kv_heads, head_dim)
        kv_pages = threads.array(a[KV_PAGES], BITS, kv_shape)
        blocks = threads.array(a[_BLOCKS], a, (num_blocks, 4))
        tables = threads.array(a[_TABLES], a, (a[_NUM_TABLES], a[_MAX_BLOCKS]))
        factors = threads.array(a[_FACTORS], FLOATS, (2,))
        scale, soft_cap = factors[0], factors[1]
        at = a[_SCRATCH] + threads.take(a, _THREAD) * (size * 4)
        queries = threads.array(at, FLOATS, (max_tiles, head_dim, _TILE))
        sums_at = at + sums_start * 4
        sums = threads.array(sums_at, FLOATS, (max_tiles, num_panels, _TILE, PANEL))
        keys_at = at + keys_start * 4
        keys = threads.array(keys_at, FLOATS, (head_dim, PANEL))
        values_at = at + values_start * 4
        values = threads.array(values_at, FLOATS, (num_panels, PANEL, PANEL))
        scores_at = at + scores_start * 4
        scores = threads.array(scores_at, FLOATS, (_TILE, PANEL))
        weights_at = at + weights_start * 4
        highest = threads.array(at + highest_start * 4, FLOATS, (max_tiles, _TILE))
        totals = threads.array(at + totals_start * 4, FLOATS, (max_tiles, _TILE))
        rows_at = at + rows_start * 4
        rows = threads.array(rows_at, a, (PANEL,))
        values[:] = zero  # columns after head_dim stay so
        while True:
            task = threads.take(a, _NEXT)
            if task >= num_blocks * kv_heads:
                return
            block, kv_head = task // kv_heads, task % kv_heads
            first_row, num_tokens = blocks[block, 0], blocks[block, 1]
            first_position, table = blocks[block, 2], tables[blocks[block, 3]]
            num_rows = num_tokens * group
            num_tiles = (num_rows + _TILE - 1) // _TILE
            for tile in range(num_tiles):
                highest[tile], totals[tile] = np.float32(-np.inf), zero
                for row in range(_TILE):
                    at_row = min(tile * _TILE + row, num_rows - 1)  # what is left over repeats one
                    head = kv_head * group + at_row % group
                    head += (first_row + at_row // group) * kv_heads * group
                    rows[row] = a[_Q] + head * (head_dim * 2)
                if has_whole_lines:
                    queries_at = at + tile * (head_dim * _TILE * 4)
                    turn_rows(queries_at, rows_at, scale, head_dim, _TILE)
                else:
                    _turn_any(queries[tile], rows, scale)
                sums[tile] = zero
            last = first_position + num_tokens - 1
            for first_key in range(max(0, first_position - window + 1), last + 1, PANEL):
                num_keys = min(PANEL, last + 1 - first_key)
                for j in range(PANEL):
                    position = first_key + min(j, num_keys - 1)
                    page, slot = table[position // page_tokens], position % page_tokens
                    rows[j] = kv_pages[page, 0, slot, kv_head].ctypes.data
                    value = kv_pages[page, 1, slot, kv_head]
                    if has_whole_lines:
                        for part in range(num_panels):
                            target_at = values[part, j].ctypes.data
                            spread(target_at, value.ctypes.data + part * (PANEL * 2), one, LINE)
                    else:
                        for k in range(head_dim):
                            values[k // PANEL, j, k % PANEL] = load(value[k])
                if has_whole_lines:
                    turn_rows(keys_at, rows_at, one, head_dim, PANEL)
                else:
                    _turn_any(keys, rows, one)
                for tile in range(num_tiles):
                    end_row = min((tile + 1) * _TILE, num_rows)
                    if first_position + (end_row - 1) // group < first_key:
                        continue  # all of its tokens come before these keys
                    scores[:] = zero
                    queries_at = at + tile * (head_dim * _TILE * 4)
                    wide_tile_12(queries_at, keys_at, scores_at, head_dim)
                    for row in range(_TILE):
                        position = first_position + (tile * _TILE + row) // group
                        upper = min(num_keys, position + 1 - first_key)
                        lower = max(0, position - window + 1 - first_key)
                        if lower >= upper or tile * _TILE + row >= num_rows:
                            scores[row] = zero
                            continue
                        before = highest[tile, row]
                        now, total = _weigh(scores[row], lower, upper, soft_cap, before)
                        highest[tile, row] = now
                        if before == now:
                            totals[tile, row] += total
                        else:
                            factor = exp(before - now) if totals[tile, row] > zero else zero
                            totals[tile, row] = totals[tile, row] * factor + total
                            for part in range(num_panels):
                                target = sums[tile, part, row]
                                for k in range(PANEL):
                                    target[k] *= factor
                    turn_tile(weights_at, scores_at, _TILE, PANEL)
                    for part in range(num_panels):
                        wide_tile_12(
                            weights_at,
                            values_at + part * (PANEL * PANEL * 4),
                            sums_at + (tile * num_panels + part) * (_TILE * PANEL * 4),
                            num_keys,
                        )
            for at_row in range(num_rows):
                tile, row = at_row // _TILE, at_row % _TILE
                factor = one / totals[tile, row]
                result = out[first_row + at_row // group, kv_head, at_row % group]
                if has_whole_lines:
                    for part in range(num_panels):
                        source_at = sums[tile, part, row].ctypes.data
                        gather(result.ctypes.data + part * (PANEL * 2), source_at, factor, LINE)
                else:
                    for k in range(head_dim):
                        store(result, k, sums[tile, k // PANEL, row, k % PANEL] * factor)

    return work
