"""LoRA over segments of tokens, weights read in place from pages: plain torch.

The reference for every faster implementation, and what runs on CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.lora.plan import PageRun, Segment


def read_span(
    layer_pages: torch.Tensor, pages: PageRun, offset: int, rows: int, width: int
) -> torch.Tensor:
    """The [rows, width] matrix at `offset` of the pages' flat array.

    A view when the pages are consecutive, else a gathered copy of the pages it touches.
    """
    page_elems = layer_pages.shape[1]
    numel = rows * width
    if pages.first >= 0:
        begin = pages.first * page_elems + offset
        return layer_pages.view(-1)[begin : begin + numel].view(rows, width)
    first, last = offset // page_elems, (offset + numel - 1) // page_elems
    touched = torch.from_numpy(pages.ids[first : last + 1]).to(layer_pages.device)
    flat = layer_pages.index_select(0, touched).view(-1)
    begin = offset - first * page_elems
    return flat[begin : begin + numel].view(rows, width)


def lora_shrink(
    x: torch.Tensor, layer_pages: torch.Tensor, segments: Sequence[Segment]
) -> list[torch.Tensor]:
    """Semantics, for each segment s: h[s] = x[s.start:s.end] @ A[s].T"""
    hidden: list[torch.Tensor] = []
    for start, end, pages, plan in segments:
        a = read_span(layer_pages, pages, plan.a_offset, plan.total_rank, plan.in_features)
        hidden.append(torch.mm(x[start:end], a.t()))
    return hidden


def lora_expand(
    y: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    layer_pages: torch.Tensor,
    segments: Sequence[Segment],
) -> None:
    """Semantics, for each segment s and projection p of it, in place:
    y[s.start:s.end, p.out] += h[s][:, p.ranks] @ (scaling * B[s, p].T)
    """
    for h, (start, end, pages, plan) in zip(hidden, segments, strict=True):
        for rank_start, rank, b_offset, out_start, out_features in plan.slices:
            b = read_span(layer_pages, pages, b_offset, rank, out_features)
            y[start:end, out_start : out_start + out_features].addmm_(
                h[:, rank_start : rank_start + rank], b
            )
