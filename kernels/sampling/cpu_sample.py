"""Drawing tokens on CPU without sorting: what top_k and top_p keep is found digit by digit in the
bits of the logits, whose order is theirs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.exponential import exp
from kernels.cpu.floats import BITS, FLOATS, load
from kernels.cpu.scratch import Scratch
from kernels.sampling.arguments import Filters

_INT32 = np.empty(0, dtype=np.int32)
_INT16 = np.empty(0, dtype=np.int16)
_DOUBLES = np.empty(0, dtype=np.float64)
_BINS = 2048
_SIGN = 1 << 31
_BLOCK = 512  # tokens whose sum is asked for before any of them is
_FEW = 16_384  # logits that one thread has read before the others are there
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LOWEST = np.float32(-87.0)  # what is further below the highest weighs nothing

(
    _NEXT,
    _THREAD,
    _NUM_ROWS,
    _VOCAB,
    _LOGITS,
    _ROWS,
    _TEMPERATURE,
    _TOP_K,
    _TOP_P,
    _MIN_P,
    _UNIFORMS,
    _IDS,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(14)

_scratch = Scratch()


def sample(
    logits: torch.Tensor, rows: torch.Tensor, filters: Filters, uniforms: torch.Tensor
) -> torch.Tensor:
    """As `kernels.sampling.naive.sample`. `exp` is rounded otherwise: in float32 that tells two
    tokens apart only where a share is within some 1e-7 of the border between them.

    logits: of a dtype that kernels.sampling.cpu supports, contiguous
    """
    count, vocab = len(rows), logits.shape[1]
    ids = np.empty(count, dtype=np.int64)
    arguments = np.array(
        [
            0,
            0,
            count,
            vocab,
            logits.data_ptr(),
            rows.data_ptr(),
            filters.temperature.data_ptr(),
            0 if filters.top_k is None else filters.top_k.data_ptr(),
            0 if filters.top_p is None else filters.top_p.data_ptr(),
            0 if filters.min_p is None else filters.min_p.data_ptr(),
            uniforms.data_ptr(),
            ids.ctypes.data,
            _scratch.address(torch.get_num_threads() * _scratch_size(vocab)),
        ]
    )
    assert len(arguments) == _NUM_ARGUMENTS
    threads.run(_worker(logits.dtype), arguments, alone=count < 2 or count * vocab < _FEW)
    return torch.from_numpy(ids)


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    row = torch.zeros(1, dtype=torch.int64)
    sample(torch.zeros(1, 1, dtype=dtype), row, Filters(torch.ones(1)), row.double())


@compiled
def _scratch_size(vocab: Any) -> Any:
    """float32 of one thread: digits' sums (float64), then weights, keys, both of candidates, and
    tokens, each [vocab], that begin with a cache line."""
    return 2 * _BINS + 5 * ((vocab + 15) // 16 * 16)


@compiled
def _weigh(
    row: Any, highest: Any, temperature: Any, weights: Any
) -> None:  # pragma: no cover - compiled
    """weights[t] = e ** ((row[t] - highest) / temperature), 0 where that is next to nothing, or no
    number."""
    for t in range(row.size):
        x = (load(row[t]) - highest) / temperature
        weights[t] = exp(x) if x > _LOWEST else _ZERO


@compiled
def _gather(
    row: Any, keys: Any, least: Any, highest: Any, temperature: Any, tokens: Any, weights: Any
) -> Any:  # pragma: no cover - compiled
    """Of the tokens whose key is at least that: their ids, in order, keys in place of the first,
    and weights as `_weigh` has them. Returns how many they are."""
    kept = 0
    for t in range(keys.size):
        if keys[t] >= least:
            tokens[kept], keys[kept] = t, keys[t]
            kept += 1
    for i in range(kept):
        x = (load(row[tokens[i]]) - highest) / temperature
        weights[i] = exp(x) if x > _LOWEST else _ZERO
    return kept


@compiled
def _order(bits: Any, keys: Any, mask: Any, shift: Any) -> Any:  # pragma: no cover - compiled
    """keys[t]: ordered as the logits with these bits are, both zeros alike. Returns the highest."""
    highest = np.int32(-_SIGN)
    for t in range(bits.size):
        each = np.int32(bits[t])
        magnitude = np.int32(each & mask)
        key = np.int32((-magnitude if each < 0 else magnitude) << shift)
        keys[t] = key
        highest = key if key > highest else highest
    return highest


@compiled
def _least(
    keys: Any, weights: Any, limit: Any, by_count: Any, bins: Any, own_keys: Any, own_weights: Any
) -> Any:  # pragma: no cover - compiled
    """The lowest key above which there is less than `limit` of weight, or of candidates; where
    there is less altogether, the lowest that weighs anything."""
    found, above, size = np.int64(0), 0.0, keys.size
    for level in range(3):
        shift, mask = (21, 2047) if level == 0 else ((10, 2047) if level == 1 else (0, 1023))
        bins[:] = 0.0
        for i in range(size):
            key = (keys[i] if level == 0 else own_keys[i]) + np.int64(_SIGN)
            weight = weights[i] if level == 0 else own_weights[i]
            bins[(key >> shift) & mask] += 1.0 if by_count else np.float64(weight)
        chosen, before = -1, above
        for digit in range(mask, -1, -1):
            if bins[digit] > 0.0:
                chosen, before = digit, above
                above += bins[digit]
                if above >= limit:
                    break
        if chosen < 0:
            return np.int64(-_SIGN)  # nothing weighs anything
        above = before
        found |= np.int64(chosen) << shift
        kept = 0
        for i in range(size):
            own = keys[i] if level == 0 else own_keys[i]
            weight = weights[i] if level == 0 else own_weights[i]
            if ((own + np.int64(_SIGN)) >> shift) & mask == chosen:
                own_keys[kept], own_weights[kept] = own, weight
                kept += 1
        size = kept
    return found - np.int64(_SIGN)


@compiled
def _keep(
    keys: Any, weights: Any, least: Any, lightest: Any
) -> None:  # pragma: no cover - compiled
    least = np.int32(least)
    for t in range(keys.size):
        weights[t] = weights[t] if keys[t] >= least and weights[t] >= lightest else _ZERO


@compiled
def _total(weights: Any) -> Any:  # pragma: no cover - compiled
    total = 0.0
    for t in range(weights.size):
        total += np.float64(weights[t])
    return total


@compiled
def _drawn(weights: Any, uniform: Any) -> Any:  # pragma: no cover - compiled
    """As `kernels.sampling.naive.draw`, of one row."""
    vocab = weights.size
    total = 0.0
    for first in range(0, vocab, _BLOCK):
        total += _total(weights[first : min(first + _BLOCK, vocab)])
    target, before, chosen = uniform * total, 0.0, vocab - 1
    for first in range(0, vocab, _BLOCK):
        block = weights[first : min(first + _BLOCK, vocab)]
        after = before + _total(block)
        if after > before:
            running = before
            for k in range(block.size):
                if block[k] > _ZERO:
                    chosen = first + k
                    running += np.float64(block[k])
                    if running > target:
                        return chosen
        before = after
    return chosen


@cache
def _worker(dtype: torch.dtype) -> Any:
    narrow = dtype is torch.bfloat16
    like, like_bits = (BITS, _INT16) if narrow else (FLOATS, _INT32)
    mask = np.int32(0x7FFF if narrow else 0x7FFFFFFF)
    widening = np.int32(16 if narrow else 0)

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        count, vocab = a[_NUM_ROWS], a[_VOCAB]
        has_top_k, has_top_p, has_min_p = a[_TOP_K] != 0, a[_TOP_P] != 0, a[_MIN_P] != 0
        rows = threads.array(a[_ROWS], a, (count,))
        temperature = threads.array(a[_TEMPERATURE], FLOATS, (count,))
        top_k = threads.array(a[_TOP_K], a, (count if has_top_k else 0,))
        top_p = threads.array(a[_TOP_P], FLOATS, (count if has_top_p else 0,))
        min_p = threads.array(a[_MIN_P], FLOATS, (count if has_min_p else 0,))
        uniforms = threads.array(a[_UNIFORMS], _DOUBLES, (count,))
        ids = threads.array(a[_IDS], a, (count,))
        scratch = a[_SCRATCH] + threads.take(a, _THREAD) * _scratch_size(vocab) * 4
        step = (vocab + 15) // 16 * 16 * 4
        bins = threads.array(scratch, _DOUBLES, (_BINS,))
        scratch += 8 * _BINS
        weights = threads.array(scratch, FLOATS, (vocab,))
        keys = threads.array(scratch + step, _INT32, (vocab,))
        own_weights = threads.array(scratch + 2 * step, FLOATS, (vocab,))
        own_keys = threads.array(scratch + 3 * step, _INT32, (vocab,))
        highest = threads.array(scratch + 3 * step, FLOATS, (1,))  # the same memory
        tokens = threads.array(scratch + 4 * step, _INT32, (vocab,))
        while True:
            n = threads.take(a, _NEXT)
            if n >= count:
                return
            all_logits = threads.array(a[_LOGITS], like, (rows[n] + 1, vocab))
            all_bits = threads.array(a[_LOGITS], like_bits, (rows[n] + 1, vocab))
            best = _order(all_bits[rows[n]], keys, mask, widening)
            own_keys[0] = best if best >= 0 else -best - np.int64(_SIGN)
            row, top = all_logits[rows[n]], highest[0]
            size, is_cut = vocab, has_top_k and 0 < top_k[n] < vocab
            if is_cut:
                limit = np.float64(top_k[n])
                least = _least(keys, weights, limit, True, bins, own_keys, own_weights)
                size = _gather(row, keys, least, top, temperature[n], tokens, weights)
            else:
                _weigh(row, top, temperature[n], weights)
            # Of those that are left, as if there were no others.
            left_keys, left_weights = keys[:size], weights[:size]
            least, lightest = np.int64(-_SIGN), min_p[n] if has_min_p else _ZERO
            if has_top_p and top_p[n] < _ONE:
                limit = np.float64(top_p[n]) * _total(left_weights)
                least = _least(left_keys, left_weights, limit, False, bins, own_keys, own_weights)
            if least > -_SIGN or lightest > _ZERO:
                _keep(left_keys, left_weights, least, lightest)
            drawn = _drawn(left_weights, uniforms[n])
            ids[n] = tokens[drawn] if is_cut else drawn

    return work
