"""Where a step's queries and their keys are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class PrefillChunk(NamedTuple):
    """Tokens [start, end) of the batch: the last tokens of one sequence's first `seq_len`."""

    start: int
    end: int
    seq_len: int
    block_table: torch.Tensor  # [ceil(seq_len / page_tokens)] int64 page ids


@dataclass(frozen=True)
class AttentionMetadata:
    """Each token of the batch is either in one prefill chunk or is one sequence's decode token.

    Padding of `decode_block_tables` repeats a page of the same sequence, so that no sequence ever
    reads memory of another one, not even masked.
    """

    prefill: tuple[PrefillChunk, ...]
    decode_rows: torch.Tensor  # [num_decode] int64: the batch rows of decode tokens
    decode_block_tables: torch.Tensor  # [num_decode, max_blocks] int64 page ids
    decode_seq_lens: torch.Tensor  # [num_decode] int64, the new token included
