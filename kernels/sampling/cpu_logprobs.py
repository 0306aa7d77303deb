"""Log-probabilities on CPU: a row is read twice, and nothing of its length is written."""

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

_BLOCK = 512  # logits whose highest decides whether any of them is looked at alone
_LANES = 8  # sums that are added up side by side
_FEW = 16_384  # logits that one thread has read before the others are there
_ZERO, _NONE = np.float32(0.0), np.float32(-np.inf)
_LOWEST = np.float32(-87.0)  # what is further below the highest weighs nothing

(
    _NEXT,
    _THREAD,
    _NUM_ROWS,
    _VOCAB,
    _NUM_TOP,
    _LOGITS,
    _ROWS,
    _IDS,
    _CHOSEN,
    _TOP_IDS,
    _TOP,
    _SCRATCH,
    _NUM_ARGUMENTS,
) = range(13)

_scratch = Scratch()


def logprobs(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `kernels.sampling.naive.logprobs`; of equal ones the lower ids are the likelier.

    logits: of a dtype that kernels.sampling.cpu supports, contiguous
    """
    count, vocab = len(rows), logits.shape[1]
    chosen = np.empty(count, dtype=np.float32)
    top_ids = np.zeros((count, num_top), dtype=np.int64)
    top = np.empty((count, num_top), dtype=np.float32)
    arguments = np.array(
        [
            0,
            0,
            count,
            vocab,
            num_top,
            logits.data_ptr(),
            rows.data_ptr(),
            ids.data_ptr(),
            chosen.ctypes.data,
            top_ids.ctypes.data,
            top.ctypes.data,
            _scratch.address(torch.get_num_threads() * _BLOCK),
        ]
    )
    assert len(arguments) == _NUM_ARGUMENTS
    threads.run(_worker(logits.dtype), arguments, alone=count < 2 or count * vocab < _FEW)
    return torch.from_numpy(chosen), torch.from_numpy(top_ids), torch.from_numpy(top)


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    row = torch.zeros(1, dtype=torch.int64)
    logprobs(torch.zeros(1, 1, dtype=dtype), row, row, 1)


@compiled
def _highest(block: Any) -> Any:  # pragma: no cover - compiled
    highest = _NONE
    for k in range(block.size):
        x = load(block[k])
        highest = x if x > highest else highest
    return highest


@compiled
def _mass(block: Any, highest: Any, weights: Any) -> Any:  # pragma: no cover - compiled
    """The sum of e ** (x - highest)."""
    size = block.size
    for k in range(size):
        x = load(block[k]) - highest
        weights[k] = exp(x) if x > _LOWEST else _ZERO
    whole = size // _LANES * _LANES
    a = b = c = d = e = f = g = h = _ZERO
    for k in range(0, whole, _LANES):
        a, b, c, d = a + weights[k], b + weights[k + 1], c + weights[k + 2], d + weights[k + 3]
        e, f, g, h = e + weights[k + 4], f + weights[k + 5], g + weights[k + 6], h + weights[k + 7]
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for k in range(whole, size):
        total += weights[k]
    return np.float64(total)


@compiled
def _rank(block: Any, first: Any, top_ids: Any, top: Any) -> None:  # pragma: no cover - compiled
    """Puts those of the block among the highest so far that belong there."""
    last = top.size - 1
    for k in range(block.size):
        x = load(block[k])
        if x > top[last]:
            at = last
            while at > 0 and x > top[at - 1]:
                top[at], top_ids[at] = top[at - 1], top_ids[at - 1]
                at -= 1
            top[at], top_ids[at] = x, first + k


@cache
def _worker(dtype: torch.dtype) -> Any:
    like = BITS if dtype is torch.bfloat16 else FLOATS

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        count, vocab, num_top = a[_NUM_ROWS], a[_VOCAB], a[_NUM_TOP]
        rows = threads.array(a[_ROWS], a, (count,))
        ids = threads.array(a[_IDS], a, (count,))
        chosen = threads.array(a[_CHOSEN], FLOATS, (count,))
        all_top_ids = threads.array(a[_TOP_IDS], a, (count, num_top))
        all_top = threads.array(a[_TOP], FLOATS, (count, num_top))
        thread = threads.take(a, _THREAD)
        weights = threads.array(a[_SCRATCH] + thread * _BLOCK * 4, FLOATS, (_BLOCK,))
        while True:
            n = threads.take(a, _NEXT)
            if n >= count:
                return
            row = threads.array(a[_LOGITS], like, (rows[n] + 1, vocab))[rows[n]]
            top_ids, top = all_top_ids[n], all_top[n]
            top[:] = _NONE
            highest = _NONE
            for first in range(0, vocab, _BLOCK):
                block = row[first : min(first + _BLOCK, vocab)]
                most = _highest(block)
                highest = most if most > highest else highest
                if num_top > 0 and most > top[num_top - 1]:
                    _rank(block, first, top_ids, top)
            total = 0.0
            for first in range(0, vocab, _BLOCK):
                total += _mass(row[first : min(first + _BLOCK, vocab)], highest, weights)
            rest = np.log(total)
            chosen[n] = np.float32(np.float64(load(row[ids[n]]) - highest) - rest)
            for k in range(num_top):
                top[k] = np.float32(np.float64(top[k] - highest) - rest)

    return work
