"""Drawing tokens in two passes over the probabilities, in one Triton kernel: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 2048
OPTIONS: dict[str, Any] = {"num_warps": 8}


@triton.jit(do_not_specialize=["vocab"])
def draw_kernel(
    probabilities_ptr,
    uniforms_ptr,
    ids_ptr,
    row_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    """grid (rows,). One program: the row's sum in f64, then block by block the first token that
    brings the running sum above its share of it. The second pass comes from L2, and it ends with
    the block that the token is in."""
    row = tl.program_id(0).to(tl.int64)
    probabilities_ptr += row * row_stride
    at = tl.arange(0, BLOCK)
    total = tl.zeros([1], tl.float64)
    last = tl.zeros([1], tl.int32) - 1
    for start in range(0, vocab, BLOCK):
        inside = start + at < vocab
        p = tl.load(probabilities_ptr + start + at, mask=inside, other=0.0)  # [BLOCK]
        total += tl.sum(p.to(tl.float64), 0)
        last = tl.maximum(last, tl.max(tl.where(p > 0.0, start + at, -1), 0))
    target = total * tl.load(uniforms_ptr + row)
    # A row without any probability, as one of NaN, gives some token.
    chosen = tl.where(last >= 0, last, vocab - 1)
    before = tl.zeros([1], tl.float64)
    start = 0
    while start < vocab:
        inside = start + at < vocab
        p = tl.load(probabilities_ptr + start + at, mask=inside, other=0.0)
        wide = p.to(tl.float64)
        reached = (before + tl.cumsum(wide, 0) > target) & (p > 0.0)
        first = tl.min(tl.where(reached, start + at, vocab), 0)
        chosen = tl.minimum(chosen, first)
        before += tl.sum(wide, 0)
        start = tl.where(first < vocab, vocab, start + BLOCK)
    tl.store(ids_ptr + row + tl.arange(0, 1), chosen.to(tl.int64))


def draw(
    probabilities: torch.Tensor, uniforms: torch.Tensor, block: int | None = None
) -> torch.Tensor:
    """As `kernels.sampling.naive.draw`. Sums are added in another order: in float64 that tells two
    tokens apart only where a uniform is within some 1e-15 of the border between them."""
    if probabilities.stride(1) != 1:
        probabilities = probabilities.contiguous()
    num_rows, vocab = probabilities.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=probabilities.device)
    if num_rows:
        launch: Any = draw_kernel[(num_rows,)]
        launch(
            probabilities,
            uniforms,
            ids,
            probabilities.stride(0),
            vocab,
            BLOCK=block or BLOCK,
            **OPTIONS,
        )
    return ids
