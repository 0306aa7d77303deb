"""The likeliest tokens on CPU: one pass over the bits of the logits, whose order vector units know.

torch compares one logit at a time, and asks for the interpreter again after each of its calls.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import SUPPORTED_DTYPES

_BLOCK = 512  # logits whose highest is found without asking where it is
_FEW_ROWS = 4  # that one thread has read before the others are there

_BYTES = np.empty(0, dtype=np.uint8)

_NEXT, _NUM_ROWS, _VOCAB, _LOGITS, _IDS, _FINITE, _NUM_ARGUMENTS = range(7)


def supports(logits: torch.Tensor) -> bool:
    return (
        logits.device.type == "cpu" and logits.dtype in SUPPORTED_DTYPES and logits.is_contiguous()
    )


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.sampling.naive.likeliest`."""
    num_rows, vocab = logits.shape
    ids, finite = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.bool_)
    arguments = np.array(
        [0, num_rows, vocab, logits.data_ptr(), ids.ctypes.data, finite.ctypes.data]
    )
    threads.run(_worker(logits.dtype), arguments, alone=num_rows < _FEW_ROWS)
    return torch.from_numpy(ids), torch.from_numpy(finite)


def warm_up(dtype: torch.dtype) -> None:
    """Compiles for this dtype, or loads what an earlier process compiled."""
    likeliest(torch.zeros(1, 1, dtype=dtype))


@compiled
def _key(bits: Any, mask: Any) -> Any:  # pragma: no cover - compiled
    """A number that is ordered as the logits are; both zeros have the same."""
    magnitude = np.int32(bits & mask)
    return np.int32(-magnitude) if bits < 0 else magnitude


@cache
def _worker(dtype: torch.dtype) -> Any:
    narrow = dtype is torch.bfloat16
    like = np.empty(0, dtype=np.int16 if narrow else np.int32)
    mask = np.int32(0x7FFF if narrow else 0x7FFFFFFF)
    infinity = np.int32(0x7F80 if narrow else 0x7F800000)

    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        num_rows, vocab = a[_NUM_ROWS], a[_VOCAB]
        logits = threads.array(a[_LOGITS], like, (num_rows, vocab))
        ids = threads.array(a[_IDS], a, (num_rows,))
        finite = threads.array(a[_FINITE], _BYTES, (num_rows,))
        while True:
            row = threads.take(a, _NEXT)
            if row >= num_rows:
                return
            bits = logits[row]
            best, best_block, widest = np.int32(-mask), 0, np.int32(0)
            for first in range(0, vocab, _BLOCK):
                block = bits[first : min(first + _BLOCK, vocab)]
                highest = np.int32(-mask)
                for k in range(block.size):
                    each = np.int32(block[k])
                    key, magnitude = _key(each, mask), np.int32(each & mask)
                    highest = key if key > highest else highest
                    widest = magnitude if magnitude > widest else widest
                if highest > best:
                    best, best_block = highest, first
            at = best_block
            while _key(np.int32(bits[at]), mask) != best:
                at += 1
            ids[row] = at
            # The bits of NaN are above those of infinity.
            finite[row] = widest <= infinity and best != infinity and best != -infinity

    return work
