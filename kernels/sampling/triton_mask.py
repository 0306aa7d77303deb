"""Masking logits, in one Triton kernel: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024
OPTIONS: dict[str, Any] = {"num_warps": 4}


@triton.jit(do_not_specialize=["vocab"])
def mask_kernel(logits_ptr, rows_ptr, bits_ptr, row_stride, num_words, vocab, BLOCK: tl.constexpr):
    """grid (n, ceil(vocab / BLOCK)). One program blanks what the bits of one row's block leave out;
    logits that stay are neither read nor written."""
    n = tl.program_id(0)
    row = tl.load(rows_ptr + n)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] tokens
    inside = at < vocab
    bits_row = bits_ptr + n.to(tl.int64) * num_words
    words = tl.load(bits_row + at // 32, mask=inside, other=-1)  # [BLOCK] int32
    blank = ((words >> (at % 32)) & 1) == 0
    lowest = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logits_ptr + row * row_stride + at, lowest, mask=inside & blank)


def mask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """As `kernels.sampling.naive.mask`. logits: its rows contiguous"""
    vocab = logits.shape[1]
    block = min(BLOCK, triton.next_power_of_2(vocab))
    if len(rows):
        launch: Any = mask_kernel[(len(rows), triton.cdiv(vocab, block))]
        launch(logits, rows, bits, logits.stride(0), bits.shape[1], vocab, BLOCK=block, **OPTIONS)
