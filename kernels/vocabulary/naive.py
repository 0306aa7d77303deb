"""Reading rows from an adapter's pages: plain torch. What runs on CPU, and the reference."""

from __future__ import annotations

import torch

from kernels.vocabulary.plan import AdapterPages, RowTable, TokenRows

_ROWS_AT_ONCE = 64  # whose elements are addressed one by one, to bound memory


def copy_rows(
    out: torch.Tensor,
    tokens: torch.Tensor,
    pool: torch.Tensor,
    pages: AdapterPages,
    rows: RowTable | TokenRows,
) -> None:
    """Semantics: out[i] = the row of tokens[i]; where `rows` has none, out[i] stays.

    out: [n, width]; tokens: [n] integers, rows of a RowTable must be there
    pool: [num_layers, num_pages, page_elems] of out's dtype
    """
    if isinstance(rows, RowTable):
        out.copy_(_read(pool, pages, rows, tokens))
        return
    at = torch.searchsorted(rows.ids, tokens).clamp_(max=rows.table.num_rows - 1)
    has_row = rows.ids[at] == tokens
    out.copy_(torch.where(has_row.unsqueeze(1), _read(pool, pages, rows.table, at), out))


def _read(
    pool: torch.Tensor, pages: AdapterPages, table: RowTable, rows: torch.Tensor
) -> torch.Tensor:
    """[len(rows), width]"""
    layer, within = rows // table.rows_per_layer, rows % table.rows_per_layer
    if (view := consecutive(pool, pages, table)) is not None:
        return view[layer, within]
    out = pool.new_empty(len(rows), table.width)
    page_elems = pool.shape[2]
    columns = torch.arange(table.width, device=pool.device)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        at = table.offset + within[some].unsqueeze(1) * table.width + columns  # [rows, width]
        out[some] = pool[layer[some].unsqueeze(1), pages.ids[at // page_elems], at % page_elems]
    return out


def consecutive(pool: torch.Tensor, pages: AdapterPages, table: RowTable) -> torch.Tensor | None:
    """The table in place, [num_layers, rows_per_layer, width]; None when its pages are not
    consecutive. What lies behind its last row is not of the table."""
    if pages.run.first < 0:
        return None
    begin = pages.run.first * pool.shape[2] + table.offset
    flat = pool.view(pool.shape[0], -1)[:, begin : begin + table.rows_per_layer * table.width]
    return flat.unflatten(1, (table.rows_per_layer, table.width))
