"""LoRA on CPU: a numba kernel that reads weights in place, page by page.

A decode step of many adapters is many tiny products; through a library each costs more in overhead
than in bytes. One call does a whole projection group for all segments, accumulating in float32.
Rows of A and B are read where they lie; one that goes on in another page is copied first.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.floats import BITS, FLOATS, SUPPORTED_DTYPES
from kernels.cpu.scratch import Scratch
from kernels.lora.cpu_products import expand, scratch_size, shrink
from kernels.lora.plan import (
    BLOCK_FIELDS,
    MAX_SLICES,
    PLAN_EXPERT_ELEMS,
    PLAN_FIELDS,
    PLAN_SLICE_FIELDS,
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    SegmentGroup,
    plan_row,
)

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
    lora_apply_blocks(y, x, layer_pages, group, group.common.blocks)


def lora_apply_blocks(
    y: torch.Tensor,
    x: torch.Tensor,
    layer_pages: torch.Tensor,
    group: SegmentGroup,
    blocks: np.ndarray[Any, Any],
) -> None:
    """Of other rows than tokens: blocks, as `LoraSpans.blocks`, say what each is of."""
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
        blocks,
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
    blocks: np.ndarray[Any, Any] | None = None,
) -> tuple[int, ...]:
    """What a LoRA worker is told. max_rank, width: at least each segment's total rank, and its
    inputs and outputs; from `y` to `plans` addresses. blocks: in place of `common.blocks`, told by
    address: who calls keeps them. Once these are made, no more threads may run than torch has now,
    and what is told for greater ones moves the scratch of these."""
    num_threads = torch.get_num_threads()
    blocks = common.blocks if blocks is None else blocks
    few = len(blocks) < _BLOCKS_A_THREAD * num_threads
    return (
        0,
        0,
        len(blocks),
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
        blocks.ctypes.data,
        common.page_indptr.ctypes.data,
        common.page_ids.ctypes.data,
        plans,
        _scratch.address(num_threads * scratch_size(max_rank, width)),
    )


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    run = PageRun.of([0])
    plan = GroupPlan(1, 1, 0, (ExpandSlice(0, 1, 1, 0, 1),))
    group = SegmentGroup(
        LoraSpans.of([(0, 1)], [run]), np.array([plan_row(plan)], dtype=np.int64), [plan]
    )
    x, y = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    lora_apply(y, x, torch.zeros(1, 2, dtype=dtype), group)


_scratch = Scratch()


@cache
def lora_worker(dtype: torch.dtype) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        """Takes blocks, or parts of them, until none is left."""
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_segments, in_features = a[_NUM_SEGMENTS], a[_IN_FEATURES]
        max_rank, width = a[_MAX_RANK], a[_WIDTH]
        y = threads.array(a[_Y], like, (a[_NUM_TOKENS] * a[_Y_STRIDE],))
        x = threads.array(a[_X], like, (a[_NUM_TOKENS] * a[_X_STRIDE],))
        pages = threads.array(a[PAGES], like, (a[_NUM_PAGES], a[_PAGE_ELEMS]))
        blocks = threads.array(a[_BLOCKS], a, (a[_NUM_BLOCKS], BLOCK_FIELDS))
        page_indptr = threads.array(a[_PAGE_INDPTR], a, (num_segments + 1,))
        page_ids = threads.array(a[_PAGE_IDS], a, (page_indptr[num_segments],))
        plans = threads.array(a[PLANS], a, (num_segments, PLAN_FIELDS))
        scratch = a[_SCRATCH] + threads.take(a, _THREAD) * scratch_size(max_rank, width) * 4
        while True:
            item = threads.take(a, _NEXT)
            if item >= a[_NUM_BLOCKS] * a[_NUM_PARTS]:
                return
            block = item // a[_NUM_PARTS]
            segment, start, num_tokens = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            plan = plans[segment]
            total_rank, num_slices = plan[0], plan[2]
            shift = blocks[block, 3] * plan[PLAN_EXPERT_ELEMS]
            if total_rank == 0:
                continue
            first_slice, end_slice, first_rank, end_rank = 0, num_slices, 0, total_rank
            if a[_NUM_PARTS] > 1:
                first_slice = item % a[_NUM_PARTS]
                if first_slice >= num_slices:
                    continue
                end_slice = first_slice + 1
                field = 3 + first_slice * PLAN_SLICE_FIELDS
                first_rank, end_rank = plan[field], plan[field] + plan[field + 1]
            ids = page_ids[page_indptr[segment] : page_indptr[segment + 1]]
            inputs = x[start * a[_X_STRIDE] :]
            shrink(
                inputs,
                a[_X_STRIDE],
                pages,
                ids,
                plan[1] + shift,
                first_rank,
                end_rank,
                in_features,
                num_tokens,
                max_rank,
                width,
                scratch,
            )
            for each in range(first_slice, end_slice):
                field = 3 + each * PLAN_SLICE_FIELDS
                outputs = y[start * a[_Y_STRIDE] + plan[field + 3] :]
                expand(
                    outputs,
                    a[_Y_STRIDE],
                    pages,
                    ids,
                    plan[field + 2] + shift,
                    plan[field],
                    plan[field + 1],
                    plan[field + 4],
                    num_tokens,
                    max_rank,
                    width,
                    scratch,
                )

    return work
