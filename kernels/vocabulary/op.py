"""Adapters' own rows of the embedding and the head: checks, then the implementation for the device.

An adapter costs a few launches of its own in each step, and no other row of the batch pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from kernels.gpu.dispatch import uses_triton
from kernels.lora.checks import check_spans
from kernels.lora.naive import read_span
from kernels.vocabulary import naive
from kernels.vocabulary.plan import (
    AdapterPages,
    EmbeddingSegment,
    HeadSegment,
    RowTable,
    TokenRows,
)


def adapt_embeddings(
    x: torch.Tensor,
    token_ids: torch.Tensor,
    pool: torch.Tensor,
    segments: Sequence[EmbeddingSegment],
) -> None:
    """Makes the base's embeddings those of each segment's adapter, in place.

    Semantics, for each segment s and its rows i, with t = token_ids[i]:
        x[i] = whole[t], with s.whole
        x[i] = row of t, with s.tokens, where they have one
        x[i] += A.T[t] @ (scaling * B.T), with s.lora

    x: [num_tokens, hidden] pool dtype, columns contiguous: the base's, before any scale
    token_ids: [num_tokens] int64 or int32, each below the vocabulary; read on the device
    pool: [num_layers, num_pages, page_elems], contiguous
    segments: disjoint, in order of start

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    _check(x, pool, segments)
    if token_ids.shape != x.shape[:1]:
        raise ValueError(f"token_ids {tuple(token_ids.shape)}, x {tuple(x.shape)}")
    for each in segments:
        for table in _tables(each):
            _check_width(table, x.shape[1])
        mine, tokens = x[each.start : each.end], token_ids[each.start : each.end]
        if each.whole is not None:
            _copy_rows(mine, tokens, pool, each.pages, each.whole)
        if each.tokens is not None:
            _copy_rows(mine, tokens, pool, each.pages, each.tokens)
        if each.lora is not None:
            a, b = each.lora
            _check_width(b, x.shape[1])
            if a.width != b.num_rows:
                raise ValueError(f"A of rank {a.width}, B of rank {b.num_rows}")
            hidden = x.new_empty(len(mine), a.width)
            _copy_rows(hidden, tokens, pool, each.pages, a)
            mine.addmm_(hidden, _matrix(pool, each.pages, b))


def adapt_logits(
    logits: torch.Tensor, x: torch.Tensor, pool: torch.Tensor, segments: Sequence[HeadSegment]
) -> None:
    """Makes the base's logits those of each segment's head, in place.

    Semantics, for each segment s and its rows i:
        logits[i] = x[i] @ whole.T, with s.whole
        logits[i, t] = x[i] @ row of t, with s.tokens, for each t that they have

    logits: [num_rows, vocab] pool dtype, columns contiguous; not aliased by x
    x: [num_rows, hidden] pool dtype, columns contiguous: the head's input
    pool, segments: as for `adapt_embeddings`

    Raises: ValueError for shapes, dtypes or segments that do not fit together.
    """
    _check(x, pool, segments)
    _check(logits, pool, ())
    if len(logits) != len(x):
        raise ValueError(f"logits {tuple(logits.shape)}, x {tuple(x.shape)}")
    for each in segments:
        for table in _tables(each):
            _check_width(table, x.shape[1])
        mine, inputs = logits[each.start : each.end], x[each.start : each.end]
        if each.whole is not None:
            if each.whole.num_rows != logits.shape[1]:
                raise ValueError(f"a head of {each.whole.num_rows} rows, {logits.shape[1]} logits")
            for first, last, rows in _slices(pool, each.pages, each.whole):
                mine[:, first:last] = _product(inputs, rows)
        if each.tokens is not None:
            ids, table = each.tokens
            for first, last, rows in _slices(pool, each.pages, table):
                mine.index_copy_(1, ids[first:last], _product(inputs, rows))


def _copy_rows(
    out: torch.Tensor,
    tokens: torch.Tensor,
    pool: torch.Tensor,
    pages: AdapterPages,
    rows: RowTable | TokenRows,
) -> None:
    if not uses_triton(pool):
        naive.copy_rows(out, tokens, pool, pages, rows)
        return
    from kernels.vocabulary import triton_rows

    triton_rows.copy_rows(out, tokens, pool, pages, rows)


def _slices(
    pool: torch.Tensor, pages: AdapterPages, table: RowTable
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First row, the row after the last, and these rows, for each layer that has some: in place,
    or a copy where the pages are not consecutive."""
    view = naive.consecutive(pool, pages, table)
    for layer, first, last in table.parts():
        if view is not None:
            rows = view[layer, : last - first]
        elif uses_triton(pool):
            rows = pool.new_empty(last - first, table.width)
            _copy_rows(rows, torch.arange(first, last, device=pool.device), pool, pages, table)
        else:
            rows = read_span(pool[layer], pages.run, table.offset, last - first, table.width)
        yield first, last, rows


def _product(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x @ rows.T, of plain rows."""
    if x.device.type == "cpu" and x.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # Unpacked, oneDNN takes half as long as what torch chooses.
        return torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
    return F.linear(x, rows)


def _matrix(pool: torch.Tensor, pages: AdapterPages, table: RowTable) -> torch.Tensor:
    """A copy of the whole table, of a few rows."""
    rows = pool.new_empty(table.num_rows, table.width)
    _copy_rows(rows, torch.arange(table.num_rows, device=pool.device), pool, pages, table)
    return rows


def _tables(segment: EmbeddingSegment | HeadSegment) -> Iterator[RowTable]:
    """Those as wide as the model."""
    if segment.whole is not None:
        yield segment.whole
    if segment.tokens is not None:
        yield segment.tokens.table


def _check(
    rows: torch.Tensor,
    pool: torch.Tensor,
    segments: Sequence[EmbeddingSegment] | Sequence[HeadSegment],
) -> None:
    if rows.dtype != pool.dtype:
        raise ValueError(f"dtypes differ: rows {rows.dtype}, pool {pool.dtype}")
    if rows.dim() != 2 or rows.stride(1) != 1:
        raise ValueError(f"{tuple(rows.shape)} is not [num_rows, features], columns contiguous")
    if pool.dim() != 3 or not pool.is_contiguous():
        raise ValueError("pool is not a contiguous [num_layers, num_pages, page_elems]")
    check_spans([(each.start, each.end) for each in segments], len(rows))


def _check_width(table: RowTable, width: int) -> None:
    if table.width != width:
        raise ValueError(f"rows of {table.width} elements for a model of {width}")
