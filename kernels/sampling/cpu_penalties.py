"""Penalties on CPU: they touch the tokens that occurred, torch the whole vocabulary, many times."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kernels.cpu import threads
from kernels.cpu.floats import FLOATS
from kernels.sampling.arguments import Histories

_INT32 = np.empty(0, dtype=np.int32)
_HIGHEST = np.float32(np.finfo(np.float32).max)
_FEW_TOKENS = 4096  # that one thread has gone through before the others are there

(
    _NEXT,
    _THREAD,
    _NUM_ROWS,
    _VOCAB,
    _TOTAL,
    _NUM_PREVIOUS,
    _LOGITS,
    _ROWS,
    _TOKENS,
    _INDPTR,
    _NUM_PROMPT,
    _UNREAD,
    _PREVIOUS,
    _FACTORS,
    _SEEN,
    _NUM_ARGUMENTS,
) = range(16)


def supports(logits: torch.Tensor) -> bool:
    return logits.device.type == "cpu" and logits.is_contiguous()


def penalize(
    logits: torch.Tensor, histories: Histories, previous_ids: torch.Tensor | None = None
) -> None:
    """As `kernels.sampling.naive.penalize`."""
    vocab = logits.shape[1]
    factors = torch.stack((histories.repetition, histories.presence, histories.frequency))
    total = len(histories.tokens)
    # Occurrences of each token, of one row at a time, for each thread.
    seen = np.zeros((torch.get_num_threads(), vocab), dtype=np.int32)
    arguments = np.array(
        [
            0,
            0,
            len(histories.rows),
            vocab,
            total,
            0 if previous_ids is None else len(previous_ids),
            logits.data_ptr(),
            histories.rows.data_ptr(),
            histories.tokens.data_ptr(),
            histories.indptr.data_ptr(),
            histories.num_prompt.data_ptr(),
            histories.unread.data_ptr(),
            0 if previous_ids is None else previous_ids.data_ptr(),
            factors.data_ptr(),
            seen.ctypes.data,
        ]
    )
    assert len(arguments) == _NUM_ARGUMENTS
    threads.run(_worker(), arguments, alone=total < _FEW_TOKENS)


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled."""
    none, one = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    nothing = torch.zeros(0)
    histories = Histories(none, none, one, none, none, nothing, nothing, nothing)
    penalize(torch.zeros(1, 1), histories)


@cache
def _worker() -> Any:
    @threads.worker
    def work(pointer: Any) -> None:  # pragma: no cover - compiled
        a = threads.told(pointer, _NUM_ARGUMENTS)
        count, vocab = a[_NUM_ROWS], a[_VOCAB]
        all_tokens = threads.array(a[_TOKENS], a, (a[_TOTAL],))
        rows = threads.array(a[_ROWS], a, (count,))
        indptr = threads.array(a[_INDPTR], a, (count + 1,))
        num_prompt = threads.array(a[_NUM_PROMPT], a, (count,))
        unread = threads.array(a[_UNREAD], a, (count,))
        previous = threads.array(a[_PREVIOUS], a, (a[_NUM_PREVIOUS],))
        factors = threads.array(a[_FACTORS], FLOATS, (3, count))
        thread = threads.take(a, _THREAD)
        seen = threads.array(a[_SEEN] + thread * vocab * 4, _INT32, (vocab,))
        while True:
            n = threads.take(a, _NEXT)
            if n >= count:
                return
            x = threads.array(a[_LOGITS] + rows[n] * vocab * 4, FLOATS, (vocab,))
            repetition, presence, frequency = factors[0, n], factors[1, n], factors[2, n]
            tokens = all_tokens[indptr[n] : indptr[n + 1]]
            size = tokens.size
            last = size + 1 if unread[n] >= 0 else size  # the unread one follows
            for i in range(last):
                t = tokens[i] if i < size else previous[unread[n]]
                if seen[t] == 0:
                    seen[t] = 1
                    x[t] = min(x[t] / repetition, _HIGHEST) if x[t] > 0 else x[t] * repetition
            # From here on one more than the occurrences in the output.
            for i in range(min(num_prompt[n], size), last):
                t = tokens[i] if i < size else previous[unread[n]]
                seen[t] += 1
            for i in range(last):
                t = tokens[i] if i < size else previous[unread[n]]
                if seen[t] > 1:
                    x[t] -= presence + frequency * np.float32(seen[t] - 1)
                seen[t] = 0

    return work
