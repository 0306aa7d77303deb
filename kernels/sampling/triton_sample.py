"""Drawing tokens without sorting, in one Triton kernel: CUDA and ROCm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.sampling.arguments import Filters

BLOCK = 1024
OPTIONS: dict[str, Any] = {"num_warps": 8}
NUM_BITS = {torch.float32: 32, torch.float16: 20, torch.bfloat16: 16}
"""That tell two float32 apart which were of this dtype, from the highest on, in whole digits."""

_DIGIT = tl.constexpr(4)  # bits of a key that are found in one pass
_DIGITS = tl.constexpr(1 << 4)
_LOWEST = tl.constexpr(-87.0)  # what is further below the highest weighs nothing
_SIGN = tl.constexpr(1 << 31)


@triton.jit
def _keys(x):
    """int32 that are ordered as the float32 `x` is, both zeros alike."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    return tl.where(bits < 0, -magnitude, magnitude)


@triton.jit
def _weights(x, inside, highest, temperature):
    """e ** ((x - highest) / temperature), 0 where that is next to nothing, or no number."""
    centred = (x - highest) / temperature
    return tl.where(inside & (centred > _LOWEST), tl.exp(centred), 0.0)


@triton.jit
def _least(
    row_ptr,
    vocab,
    highest,
    temperature,
    floor,
    limit,
    by_count,
    NUM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The lowest key above which there is less than `limit` of weight, or of tokens, among those
    whose key is at least `floor`: digit by digit, a pass over the row for each."""
    at = tl.arange(0, BLOCK)
    digits = tl.arange(0, _DIGITS)
    found = tl.zeros([], tl.int64)  # of keys, counted from the lowest
    for level in range(NUM_BITS // _DIGIT):
        shift = 32 - _DIGIT * (level + 1)
        ones = (tl.full([], 1, tl.int64) << shift) - 1
        above = (found + (digits.to(tl.int64) << shift) + ones - _SIGN).to(tl.int32)  # [_DIGITS]
        sums = tl.zeros([_DIGITS, BLOCK], tl.float32)
        for start in range(0, vocab, BLOCK):
            inside = start + at < vocab
            x = tl.load(row_ptr + start + at, mask=inside, other=float("-inf")).to(tl.float32)
            keys = _keys(x)
            w = _weights(x, inside, highest, temperature)
            w = tl.where(by_count != 0, inside.to(tl.float32), w)
            w = tl.where(keys >= floor, w, 0.0)
            sums += tl.where(keys[None, :] > above[:, None], w[None, :], 0.0)
        mass = tl.sum(sums.to(tl.float64), 1)  # [_DIGITS]
        digit = tl.minimum(tl.min(tl.where(mass < limit, digits, _DIGITS), 0), _DIGITS - 1)
        found += digit.to(tl.int64) << shift
    return (found - _SIGN).to(tl.int32)


@triton.jit(do_not_specialize=["vocab", "has_top_k", "has_top_p", "has_min_p"])
def sample_kernel(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniforms_ptr,
    ids_ptr,
    row_stride,
    vocab,
    has_top_k,
    has_top_p,
    has_min_p,
    NUM_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grid (n,). One program draws from one row: its highest logit, what top_k and top_p keep, the
    sum of what is kept, in f64, and block by block the first token that brings the running sum
    above its share of it. All passes but the first come from L2; the last ends with the block that
    the token is in."""
    n = tl.program_id(0)
    row_ptr = logits_ptr + tl.load(rows_ptr + n) * row_stride
    temperature = tl.load(temperature_ptr + n)
    at = tl.arange(0, BLOCK)
    highest = tl.full([], float("-inf"), tl.float32)
    for start in range(0, vocab, BLOCK):
        x = tl.load(row_ptr + start + at, mask=start + at < vocab, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(x.to(tl.float32), 0))

    least = tl.full([], -0x7FFFFFFF, tl.int32)  # the lowest key
    if has_top_k != 0:
        top_k = tl.load(top_k_ptr + n)
        if (top_k > 0) & (top_k < vocab):
            limit = top_k.to(tl.float64)
            least = _least(row_ptr, vocab, highest, temperature, least, limit, 1, NUM_BITS, BLOCK)
    if has_top_p != 0:
        top_p = tl.load(top_p_ptr + n).to(tl.float64)
        if top_p < 1.0:
            total = _sum(row_ptr, vocab, highest, temperature, least, 0.0, BLOCK)
            nucleus = _least(
                row_ptr, vocab, highest, temperature, least, top_p * total, 0, NUM_BITS, BLOCK
            )
            least = tl.maximum(least, nucleus)
    lightest = tl.zeros([], tl.float32)
    if has_min_p != 0:
        lightest = tl.load(min_p_ptr + n)

    total = _sum(row_ptr, vocab, highest, temperature, least, lightest, BLOCK)
    target = tl.load(uniforms_ptr + n) * total
    before = tl.zeros([], tl.float64)
    last = tl.full([], -1, tl.int32)
    found = tl.zeros([], tl.int32) + vocab
    start = 0
    while start < vocab:
        inside = start + at < vocab
        x = tl.load(row_ptr + start + at, mask=inside, other=float("-inf")).to(tl.float32)
        w = _kept(x, inside, highest, temperature, least, lightest)
        wide = w.to(tl.float64)
        reached = (before + tl.cumsum(wide, 0) > target) & (w > 0.0)
        found = tl.min(tl.where(reached, start + at, vocab), 0)
        last = tl.maximum(last, tl.max(tl.where(w > 0.0, start + at, -1), 0))
        before += tl.sum(wide, 0)
        start = tl.where(found < vocab, vocab, start + BLOCK)
    # Rounding may carry past the last one; a row that says nothing gives some token.
    chosen = tl.where(found < vocab, found, tl.where(last >= 0, last, vocab - 1))
    tl.store(ids_ptr + n, chosen.to(tl.int64))


@triton.jit
def _kept(x, inside, highest, temperature, least, lightest):
    w = _weights(x, inside, highest, temperature)
    return tl.where((_keys(x) >= least) & (w >= lightest), w, 0.0)


@triton.jit
def _sum(row_ptr, vocab, highest, temperature, least, lightest, BLOCK: tl.constexpr):
    """Of what is kept, in f64."""
    at = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab, BLOCK):
        inside = start + at < vocab
        x = tl.load(row_ptr + start + at, mask=inside, other=float("-inf")).to(tl.float32)
        sums += _kept(x, inside, highest, temperature, least, lightest).to(tl.float64)
    return tl.sum(sums, 0)


def sample(
    logits: torch.Tensor, rows: torch.Tensor, filters: Filters, uniforms: torch.Tensor
) -> torch.Tensor:
    """As `kernels.sampling.naive.sample`. Sums are added in another order: that tells two tokens
    apart only where a share is within some 1e-7 of the border between them."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    count = len(rows)
    ids = torch.empty(count, dtype=torch.int64, device=logits.device)
    if count:
        top_k, top_p, min_p = filters.top_k, filters.top_p, filters.min_p
        launch: Any = sample_kernel[(count,)]
        launch(
            logits,
            rows,
            filters.temperature,
            # What is not there is not read.
            rows if top_k is None else top_k,
            filters.temperature if top_p is None else top_p,
            filters.temperature if min_p is None else min_p,
            uniforms,
            ids,
            logits.stride(0),
            logits.shape[1],
            int(top_k is not None),
            int(top_p is not None),
            int(min_p is not None),
            NUM_BITS=NUM_BITS[logits.dtype],
            BLOCK=min(BLOCK, triton.next_power_of_2(logits.shape[1])),
            **OPTIONS,
        )
    return ids
