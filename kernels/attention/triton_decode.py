"""Paged decode: one query token per sequence, its keys split over programs (Flash-Decoding,
Dao et al. 2023), then combined in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.attention.metadata import AttentionMetadata
from kernels.attention.triton_scores import Scores, block_dim
from kernels.attention.triton_softmax import attend
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import Settings, launch_options, tuned

_MAX_SPLITS = 128
COMBINE_OPTIONS: dict[str, Any] = {"num_warps": 2}


@triton.jit
def split_size(num_keys, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Keys per split: a function of the sequence alone, so that a sequence's output has the same
    bits in any batch."""
    even = (num_keys + MAX_SPLITS - 1) // MAX_SPLITS
    return tl.maximum((even + BLOCK_N - 1) // BLOCK_N * BLOCK_N, MIN_SPLIT)


@triton.jit(
    do_not_specialize=["table_stride", "grid_splits", "window"],
    do_not_specialize_on_alignment=["rows_ptr", "tables_ptr", "seq_lens_ptr"],
)
def decode_kernel(
    q_ptr,
    kv_ptr,
    rows_ptr,
    tables_ptr,
    seq_lens_ptr,
    partial_ptr,
    lse_ptr,
    q_stride,
    page_stride,
    table_stride,
    grid_splits,
    scale,
    cap,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """grid (splits, key heads, sequences). One program: the GROUP query heads of one key head, as
    rows, over one split of the keys; normalised, with the log2 of the sum of its weights.

    partial: [num_decode, num_heads, grid_splits, HEAD_DIM] f32; lse: the same without HEAD_DIM.
    Splits after a sequence's last are not written.
    """
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(seq_lens_ptr + seq).to(tl.int32)
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(seq_len - window, 0)
    size = split_size(seq_len - first, MIN_SPLIT, MAX_SPLITS, BLOCK_N)
    begin = first + split * size
    end = tl.minimum(begin + size, seq_len)
    if begin >= end:
        return
    row = tl.load(rows_ptr + seq).to(tl.int64)
    member = tl.arange(0, BLOCK_M)  # of the group
    dims = tl.arange(0, BLOCK_D)
    real = (member[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    heads = kv_head * GROUP + member
    q = tl.load(
        q_ptr + row * q_stride + heads[:, None] * HEAD_DIM + dims[None, :], mask=real, other=0.0
    )  # [BLOCK_M, BLOCK_D]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    positions = tl.zeros([BLOCK_M], tl.int32) + (seq_len - 1)
    kv_ptr += kv_head * HEAD_DIM
    table_ptr = tables_ptr + seq.to(tl.int64) * table_stride
    whole = begin + (end - begin) // BLOCK_N * BLOCK_N
    acc, total, largest = attend(
        acc, total, largest, q, positions, kv_ptr, table_ptr, page_stride, begin, whole, scale,
        cap, window, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS, BLOCK_N, BLOCK_D, HAS_WINDOW, HAS_CAP,
        MASKED=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    acc, total, largest = attend(
        acc, total, largest, q, positions, kv_ptr, table_ptr, page_stride, whole, end, scale,
        cap, window, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS, BLOCK_N, BLOCK_D, HAS_WINDOW, HAS_CAP,
        MASKED=True,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    at = (seq.to(tl.int64) * NUM_KV_HEADS * GROUP + heads) * grid_splits + split
    tl.store(partial_ptr + at[:, None] * HEAD_DIM + dims[None, :], acc / total[:, None], mask=real)
    tl.store(lse_ptr + at, largest + tl.log2(total), mask=member < GROUP)


@triton.jit(
    do_not_specialize=["grid_splits", "window"],
    do_not_specialize_on_alignment=["rows_ptr", "seq_lens_ptr"],
)
def combine_kernel(
    partial_ptr,
    lse_ptr,
    rows_ptr,
    seq_lens_ptr,
    out_ptr,
    out_stride,
    grid_splits,
    window,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """grid (heads, sequences). One program: one head's splits, weighted by their sums, in order."""
    head, seq = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows_ptr + seq).to(tl.int64)
    if row < 0:
        return
    num_keys = tl.load(seq_lens_ptr + seq).to(tl.int32)
    if HAS_WINDOW:
        num_keys = tl.minimum(num_keys, window)
    size = split_size(num_keys, MIN_SPLIT, MAX_SPLITS, BLOCK_N)
    num_splits = (num_keys + size - 1) // size
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < HEAD_DIM
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    largest = float("-inf")
    base = (seq.to(tl.int64) * NUM_HEADS + head) * grid_splits
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        live = splits < num_splits
        lse = tl.load(lse_ptr + base + splits, mask=live, other=float("-inf"))
        partial = tl.load(
            partial_ptr + (base + splits)[:, None] * HEAD_DIM + dims[None, :],
            mask=live[:, None] & in_head[None, :],
            other=0.0,
        )  # [BLOCK_S, BLOCK_D]
        now = tl.maximum(largest, tl.max(lse, 0))
        weights = tl.exp2(lse - now)
        decay = tl.exp2(largest - now)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay + tl.sum(partial * weights[:, None], 0)
        largest = now
    # A sequence of length 0 is padding: zeros, so that no NaN is born from it.
    out = tl.where(total > 0.0, acc / tl.where(total > 0.0, total, 1.0), 0.0)
    at = row * out_stride + head * HEAD_DIM + dims
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=in_head)


def decode_constants(scores: Scores, settings: Settings) -> dict[str, Any]:
    """decode_kernel's constexprs."""
    splits = triton.next_power_of_2(triton.cdiv(settings["split_programs"], scores.num_kv_heads))
    return scores.constants() | {
        "BLOCK_M": max(16, triton.next_power_of_2(scores.group)),
        "BLOCK_N": settings["block_n"],
        "BLOCK_D": block_dim(scores.head_dim),
        "MIN_SPLIT": settings["min_split"],
        "MAX_SPLITS": min(splits, _MAX_SPLITS),
    }


def combine_constants(scores: Scores, settings: Settings, decode: dict[str, Any]) -> dict[str, Any]:
    """combine_kernel's constexprs: the partition into splits must be decode_kernel's."""
    names = ("HEAD_DIM", "BLOCK_N", "BLOCK_D", "MIN_SPLIT", "MAX_SPLITS", "HAS_WINDOW")
    return {name: decode[name] for name in names} | {
        "NUM_HEADS": scores.num_kv_heads * scores.group,
        "BLOCK_S": settings["combined_at_once"],
    }


def num_splits(max_keys: int, constants: dict[str, Any]) -> int:
    """Splits of the longest sequence: sizes the grid, and changes no result."""
    block = constants["BLOCK_N"]
    even = -(-max_keys // constants["MAX_SPLITS"])
    size = max(-(-even // block) * block, constants["MIN_SPLIT"])
    return max(1, -(-max_keys // size))


def decode(
    out: torch.Tensor,
    q: torch.Tensor,
    kv_pages: torch.Tensor,
    metadata: AttentionMetadata,
    scores: Scores,
) -> None:
    """Writes the decode rows of `out`. No host sync; the launch depends on shapes only."""
    rows, tables = metadata.decode_rows, metadata.decode_block_tables
    settings = tuned("attention", device_name(q.device), "decode", scores.case(q.dtype))
    constants = decode_constants(scores, settings)
    max_keys = tables.shape[1] * scores.page_tokens
    if scores.window is not None:
        max_keys = min(max_keys, scores.window)
    splits = num_splits(max_keys, constants)
    num_decode, num_heads, head_dim = rows.shape[0], q.shape[1], q.shape[2]
    partial = q.new_empty(num_decode, num_heads, splits, head_dim, dtype=torch.float32)
    lse = q.new_empty(num_decode, num_heads, splits, dtype=torch.float32)
    window = scores.window or 0
    decode_kernel[(splits, scores.num_kv_heads, num_decode)](
        q,
        kv_pages,
        rows,
        tables,
        metadata.decode_seq_lens,
        partial,
        lse,
        q.stride(0),
        kv_pages.stride(0),
        tables.stride(0),
        splits,
        scores.factor,
        scores.cap,
        window,
        **constants,
        **launch_options(settings),
    )
    combine_kernel[(num_heads, num_decode)](
        partial,
        lse,
        rows,
        metadata.decode_seq_lens,
        out,
        out.stride(0),
        splits,
        window,
        **combine_constants(scores, settings, constants),
        **COMBINE_OPTIONS,
    )
