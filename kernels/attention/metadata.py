"""Where a step's queries and their keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from kernels.gpu.staging import staged_together


class PrefillChunk(NamedTuple):
    """Tokens [start, end) of the batch: the last tokens of one sequence's first `seq_len`."""

    start: int
    end: int
    seq_len: int
    block_table: torch.Tensor  # [ceil(seq_len / page_tokens)] page ids


@dataclass(frozen=True)
class RaggedPrefill:
    """The prefill chunks of a batch as one launch reads them. Integers, on the device."""

    query_indptr: torch.Tensor  # [n + 1]: how many prefill tokens stand before each chunk's
    first_rows: torch.Tensor  # [n]: the batch row of each chunk's first token
    seq_lens: torch.Tensor  # [n]: this step's tokens included
    block_tables: torch.Tensor  # [n, max_blocks] page ids; what pads them is not read
    num_tokens: int  # query_indptr[-1], or any bound above it


@dataclass(frozen=True)
class AttentionMetadata:
    """Each token of the batch is either in one prefill chunk or is one sequence's decode token.

    Padding of `decode_block_tables` repeats a page of the same sequence, so that no sequence ever
    reads memory of another one, not even masked. Triton kernels also take padding sequences, as
    graphs of a fixed batch size need: of length 0, their output rows are zeros.
    """

    prefill: tuple[PrefillChunk, ...]
    decode_rows: torch.Tensor  # [num_decode] int64 or int32: the batch rows of decode tokens
    decode_block_tables: torch.Tensor  # [num_decode, max_blocks] page ids, of the same type
    decode_seq_lens: torch.Tensor  # [num_decode], of the same type, the new token included
    ragged: RaggedPrefill | None = None  # what `prefill` says; Triton makes it when it is missing


class Queries(NamedTuple):
    """Rows [start, end) of a batch ask for the last tokens of a sequence's first `seq_len`."""

    start: int
    end: int
    seq_len: int
    block_table: Sequence[int]  # [ceil(seq_len / page_tokens)] page ids
    is_prefill: bool = False  # even a single one; several always are


def attention_metadata(queries: Sequence[Queries], device: torch.device) -> AttentionMetadata:
    """The batch's metadata on `device`; on a GPU int32, and sent in one copy that nobody waits
    for."""
    dtype = np.int64 if device.type == "cpu" else np.int32
    prefill = [each for each in queries if each.is_prefill or each.end - each.start > 1]
    decode = [each for each in queries if not each.is_prefill and each.end - each.start == 1]
    parts = [
        np.array([each.start for each in decode], dtype),
        padded_tables([each.block_table for each in decode], dtype),
        np.array([each.seq_len for each in decode], dtype),
    ]
    if not prefill:
        rows, tables, seq_lens = staged_together(parts, device)
        return AttentionMetadata((), rows, tables, seq_lens)
    indptr = [0, *accumulate(each.end - each.start for each in prefill)]
    parts += [
        np.array(indptr, dtype),
        np.array([each.start for each in prefill], dtype),
        np.array([each.seq_len for each in prefill], dtype),
        padded_tables([each.block_table for each in prefill], dtype),
    ]
    rows, tables, seq_lens, query_indptr, first_rows, prefill_lens, prefill_tables = (
        staged_together(parts, device)
    )
    return AttentionMetadata(
        prefill=tuple(
            PrefillChunk(each.start, each.end, each.seq_len, table[: len(each.block_table)])
            for each, table in zip(prefill, prefill_tables, strict=True)
        ),
        decode_rows=rows,
        decode_block_tables=tables,
        decode_seq_lens=seq_lens,
        ragged=RaggedPrefill(query_indptr, first_rows, prefill_lens, prefill_tables, indptr[-1]),
    )


def ragged_prefill(chunks: Sequence[PrefillChunk], device: torch.device) -> RaggedPrefill:
    """From chunks whose block tables are on `device`."""
    lens = [chunk.end - chunk.start for chunk in chunks]
    indptr, first_rows, seq_lens = staged_together(
        [
            np.cumsum([0, *lens], dtype=np.int32),
            np.array([chunk.start for chunk in chunks], np.int32),
            np.array([chunk.seq_len for chunk in chunks], np.int32),
        ],
        device,
    )
    tables = torch.nn.utils.rnn.pad_sequence(
        [chunk.block_table.to(torch.int32) for chunk in chunks], batch_first=True
    )
    return RaggedPrefill(indptr, first_rows, seq_lens, tables, sum(lens))


def padded_tables(tables: Sequence[Sequence[int]], dtype: type[np.signedinteger]) -> np.ndarray:
    """[len(tables), the longest's length]; each row goes on with its table's last page."""
    width = max(map(len, tables), default=0)
    if all(len(table) == width for table in tables):
        return np.array(tables, dtype).reshape(len(tables), width)
    padded = np.empty((len(tables), width), dtype)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
        row[len(table) :] = table[-1]
    return padded
