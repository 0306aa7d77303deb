"""Masking logits on CPU: whole words of the mask are passed over or blanked at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.floats import FLOATS

_WORDS = np.empty(0, dtype=np.int32)
_LOWEST = np.float32(-np.inf)
_FEW = 65_536  # logits that one thread has masked before the others are there

_NEXT, _NUM_ROWS, _VOCAB, _NUM_WORDS, _LOGITS, _ROWS, _BITS, _NUM_ARGUMENTS = range(8)


def supports(logits: torch.Tensor) -> bool:
    return logits.device.type == "cpu" and logits.is_contiguous()


def mask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """As `kernels.sampling.naive.mask`."""
    count, vocab = len(rows), logits.shape[1]
    arguments = np.array(
        [0, count, vocab, bits.shape[1], logits.data_ptr(), rows.data_ptr(), bits.data_ptr()]
    )
    assert len(arguments) == _NUM_ARGUMENTS
    threads.run(_worker(), arguments, alone=count < 2 or count * vocab < _FEW)


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled."""
    mask(
        torch.zeros(1, 1),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 1, dtype=torch.int32),
    )


@cache
def _worker() -> Any:
    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        count, vocab, num_words = a[_NUM_ROWS], a[_VOCAB], a[_NUM_WORDS]
        rows = threads.array(a[_ROWS], a, (count,))
        all_bits = threads.array(a[_BITS], _WORDS, (count, num_words))
        while True:
            n = threads.take(a, _NEXT)
            if n >= count:
                return
            x = threads.array(a[_LOGITS] + rows[n] * vocab * 4, FLOATS, (vocab,))
            bits = all_bits[n]
            for word in range(num_words):
                each, first = bits[word], word * 32
                if each == 0:
                    x[first : min(first + 32, vocab)] = _LOWEST
                elif each != -1:
                    for t in range(first, min(first + 32, vocab)):
                        if (each >> (t - first)) & 1 == 0:
                            x[t] = _LOWEST

    return work
