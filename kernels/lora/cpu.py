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
    _lora(
        bits_of(y),
        bits_of(x),
        bits_of(layer_pages),
        group.common.spans,
        group.common.page_indptr,
        group.common.page_ids,
        group.plans,
        _scratch(int(group.plans[:, 0].max()) + y.shape[1]),
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


def _scratch(width: int) -> np.ndarray[Any, Any]:
    """[MAX_TOKENS, at least width] float32, kept between calls (one engine thread)."""
    global _buffer
    if _buffer.shape[1] < width:
        _buffer = np.empty((MAX_TOKENS, width), dtype=np.float32)
    return _buffer


_buffer = np.empty((MAX_TOKENS, 0), dtype=np.float32)


@compiled
def _dot(row: Any, column: Any) -> Any:  # pragma: no cover - compiled
    total = np.float32(0.0)
    for k in range(column.size):
        total += load(row[k]) * load(column[k])
    return total


@compiled
def _axpy(factor: Any, row: Any, total: Any) -> None:  # pragma: no cover - compiled
    for k in range(total.size):
        total[k] += factor * load(row[k])


@compiled
def _lora(
    y: Any,
    x: Any,
    pages: Any,
    spans: Any,
    page_indptr: Any,
    page_ids: Any,
    plans: Any,
    scratch: Any,
    max_tokens: int,
) -> None:  # pragma: no cover - compiled
    """One program for all segments. Rows of A and B may cross pages: they are read in pieces."""
    page_elems = pages.shape[1]
    in_features = x.shape[1]
    for segment in range(spans.shape[0]):
        start, end = spans[segment, 0], spans[segment, 1]
        plan = plans[segment]
        total_rank, a_offset, num_slices = plan[0], plan[1], plan[2]
        if end - start > max_tokens or total_rank == 0:
            continue
        ids = page_ids[page_indptr[segment] : page_indptr[segment + 1]]
        hidden = scratch[:, :total_rank]
        for r in range(total_rank):
            for t in range(end - start):
                hidden[t, r] = 0.0
            offset, done = a_offset + r * in_features, 0
            while done < in_features:
                at = offset % page_elems
                length = min(in_features - done, page_elems - at)
                row = pages[ids[offset // page_elems], at : at + length]
                for t in range(end - start):
                    hidden[t, r] += _dot(row, x[start + t, done : done + length])
                done += length
                offset += length
        for each in range(num_slices):
            part = plan[3 + each * PLAN_SLICE_FIELDS : 3 + (each + 1) * PLAN_SLICE_FIELDS]
            rank_start, rank, b_offset, out_start, out_features = (
                part[0],
                part[1],
                part[2],
                part[3],
                part[4],
            )
            delta = scratch[:, total_rank : total_rank + out_features]
            for t in range(end - start):
                delta[t] = 0.0
            for r in range(rank):
                offset, done = b_offset + r * out_features, 0
                while done < out_features:
                    at = offset % page_elems
                    length = min(out_features - done, page_elems - at)
                    row = pages[ids[offset // page_elems], at : at + length]
                    for t in range(end - start):
                        _axpy(hidden[t, rank_start + r], row, delta[t, done : done + length])
                    done += length
                    offset += length
            for t in range(end - start):
                target = y[start + t, out_start : out_start + out_features]
                for k in range(out_features):
                    store(target, k, load(target[k]) + delta[t, k])
