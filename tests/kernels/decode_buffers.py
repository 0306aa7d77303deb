"""Decode metadata at fixed addresses, as a captured graph reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kernels.attention.metadata import AttentionMetadata, Queries
from kernels.gpu.staging import staged_together


class DecodeBuffers:
    """Room for `num_decode` sequences of at most `max_blocks` pages; rows are 0, 1, 2, …

    `metadata` stays the same object: a graph captured with it reads what `fill` wrote last. Only
    for Triton: the torch twin takes no padding.
    """

    def __init__(self, num_decode: int, max_blocks: int, device: torch.device) -> None:
        self._tables = torch.zeros(num_decode, max_blocks, dtype=torch.int32, device=device)
        self._seq_lens = torch.zeros(num_decode, dtype=torch.int32, device=device)
        rows = torch.arange(num_decode, dtype=torch.int32, device=device)
        self.metadata = AttentionMetadata((), rows, self._tables, self._seq_lens)

    def fill(self, queries: Sequence[Queries]) -> None:
        """Sequence i asks with row i; the rows after them are padding. Nobody waits for the copy.

        Raises: ValueError for what the buffers have no room for, or is no decode.
        """
        num_decode, max_blocks = self._tables.shape
        if len(queries) > num_decode:
            raise ValueError(f"{len(queries)} sequences, room for {num_decode}")
        packed = np.zeros((num_decode, 1 + max_blocks), np.int32)
        for index, query in enumerate(queries):
            if (query.start, query.end) != (index, index + 1):
                raise ValueError(f"rows [{query.start}, {query.end}) of sequence {index}")
            if len(query.block_table) > max_blocks:
                raise ValueError(f"{len(query.block_table)} pages, room for {max_blocks}")
            packed[index, 0] = query.seq_len
            packed[index, 1 : 1 + len(query.block_table)] = query.block_table
        (sent,) = staged_together([packed], self._tables.device)
        self._seq_lens.copy_(sent[:, 0])
        self._tables.copy_(sent[:, 1:])
