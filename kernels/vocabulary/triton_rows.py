"""Copying rows of an adapter's embedding or head out of its pages, in Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.lora.plan import PageRun
from kernels.vocabulary.plan import AdapterPages, RowTable, TokenRows

BLOCK = 256
"""Columns of one program, for rows of a model's width and of a rank alike; not measured."""
_NUM_WARPS = 4
_SIZES = ["num_wanted", "layer_stride", "out_stride", "rows_per_layer", "offset", "width"]
_POINTERS = ["out", "tokens", "page_ids", "wanted"]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_POINTERS)
def copy_rows_kernel(
    out,
    tokens,
    pool,
    page_ids,
    wanted,
    num_wanted,
    layer_stride,
    out_stride,
    rows_per_layer,
    offset,
    width,
    PAGE_ELEMS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_SPARSE: tl.constexpr,
):
    """Grid: (rows of out, blocks of columns).

    One program: BLOCK columns of one row, copied as they are. IS_SPARSE: the row of a token is
    where `wanted`, which ascends, has it, found by bisection; a token that it has not is left
    alone. Otherwise a token is its row.
    """
    at_out = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + at_out).to(tl.int64)
    row = token
    if IS_SPARSE:
        low = token * 0
        high = low + num_wanted
        while low < high:
            middle = (low + high) // 2
            is_less = tl.load(wanted + middle) < token
            low = tl.where(is_less, middle + 1, low)
            high = tl.where(is_less, high, middle)
        if tl.load(wanted + tl.minimum(low, num_wanted - 1)) != token:
            return
        row = low
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = offset + (row % rows_per_layer) * width + columns  # [BLOCK]
    page = tl.load(page_ids + at // PAGE_ELEMS, mask=inside, other=0)  # [BLOCK]
    layer = pool + (row // rows_per_layer) * layer_stride
    values = tl.load(layer + page * PAGE_ELEMS + at % PAGE_ELEMS, mask=inside)
    tl.store(out + at_out * out_stride + columns, values, mask=inside)


def copy_rows(
    out: torch.Tensor,
    tokens: torch.Tensor,
    pool: torch.Tensor,
    pages: AdapterPages,
    rows: RowTable | TokenRows,
) -> None:
    """As `kernels.vocabulary.naive.copy_rows`."""
    table, wanted = (rows, pages.ids) if isinstance(rows, RowTable) else (rows.table, rows.ids)
    if not len(out):
        return
    launch: Any = copy_rows_kernel[len(out), triton.cdiv(table.width, BLOCK)]
    launch(
        out,
        tokens,
        pool,
        pages.ids,
        wanted,
        len(wanted),
        pool.stride(0),
        out.stride(0),
        table.rows_per_layer,
        table.offset,
        table.width,
        PAGE_ELEMS=pool.shape[2],
        BLOCK=BLOCK,
        IS_SPARSE=isinstance(rows, TokenRows),
        num_warps=_NUM_WARPS,
    )


def warm_up(pool: torch.Tensor) -> None:
    """Compiles what steps launch, or loads what an earlier process compiled. Reads a row of `pool`,
    on its device."""
    zeros = torch.zeros(1, dtype=torch.int64, device=pool.device)
    pages, table = AdapterPages(PageRun.of([0]), zeros), RowTable(1, 1, 1, 0)
    for rows in (table, TokenRows(zeros, table)):
        copy_rows(pool.new_empty(1, 1), zeros, pool, pages, rows)
