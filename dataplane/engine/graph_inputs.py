"""What captured steps read, at fixed addresses: one row for each token, then padding."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import starmap

import numpy as np
import torch

from dataplane.engine.chunk import Chunk
from dataplane.models.decoder import Batch, LayerSegments
from kernels.attention.metadata import AttentionMetadata

_FIELDS = 6  # tokens, sources, positions, pages, offsets, lengths


class StepInputs:
    """Room for `max_size` tokens of sequences of at most `num_blocks` pages.

    To attention each row is a sequence that ends with its token: all keys of a layer are written
    before any are read. A padding row is one of a single token in `padding_page`, which nobody
    owns: it writes there, reads only there, and its logits are cut off. The host keeps a copy of
    all, so that a step sends block tables only when one of them has changed.
    """

    def __init__(
        self,
        max_size: int,
        num_blocks: int,
        *,
        page_tokens: int,
        padding_page: int,
        device: torch.device,
    ) -> None:
        dtype = torch.int64 if device.type == "cpu" else torch.int32  # as CPU kernels take them
        self._page_tokens = page_tokens
        self._padding = [padding_page]
        self._num_fields = _FIELDS * max_size
        self._num_blocks = num_blocks
        sizes = (self._num_fields, max_size * num_blocks)
        self._buffer = torch.zeros(sum(sizes), dtype=dtype, device=device)
        fields, tables = self._buffer.split(sizes)
        self._fields = fields.view(_FIELDS, max_size)
        self._tables = tables.view(max_size, num_blocks)
        self._rows = torch.arange(max_size, dtype=dtype, device=device)
        self._host = np.zeros(sum(sizes), dtype=np.int64 if device.type == "cpu" else np.int32)
        self._host_fields = self._host[: self._num_fields].reshape(_FIELDS, max_size)
        self._host_tables = self._host[self._num_fields :].reshape(max_size, num_blocks)
        self._known: list[list[int]] = [[] for _ in range(max_size)]  # tables, as they were sent

    def prepare(self, chunks: Seq[Chunk], sources: Seq[int], size: int) -> Callable[[], None]:
        """A row for each token of the chunks, then padding up to `size`. What it returns sends
        them, in one copy on the current stream; steps must be sent in the order in which they were
        prepared.

        sources: where the token of each chunk is among those that the step before sampled; -1
        where it is known, as all are of a chunk of several.
        """
        length = self._page_tokens
        rows = [
            (
                chunk.sequence.tokens[position] if source < 0 else 0,
                source,
                position,
                chunk.sequence.block_table[position // length],
                position % length,
                position + 1,
            )
            for chunk, source in zip(chunks, sources, strict=True)
            for position in range(chunk.start, chunk.end)
        ]
        assert len(rows) <= size
        padding = (0, -1, 0, self._padding[0], 0, 1)
        rows += [padding] * (size - len(rows))
        self._host_fields[:, :size] = np.array(rows, dtype=self._host.dtype).T
        tables: list[list[int]] = []
        for chunk in chunks:
            table = chunk.sequence.block_table[: -(-chunk.end // length)]
            tables += [table] * chunk.num_tokens
        tables += [self._padding] * (size - len(tables))
        changed = any([*starmap(self._set_table, enumerate(tables))])
        return self._staged(self._num_fields + changed * size * self._num_blocks)

    def batch(self, size: int, layers: Seq[LayerSegments], previous_ids: torch.Tensor) -> Batch:
        """Of the first `size` rows, as they are when this runs on the device.

        previous_ids: [any] int64: what `sources` point into
        """
        tokens, sources, positions, pages, offsets, lengths = self._fields[:, :size]
        rows = self._rows[:size]
        unread = previous_ids[sources.clamp(min=0)].to(tokens.dtype)
        return Batch(
            token_ids=torch.where(sources >= 0, unread, tokens),
            positions=positions,
            page_index=pages,
            page_offset=offsets,
            attention=AttentionMetadata((), rows, self._tables[:size], lengths),
            layers=layers,
            affine=(),
            logit_rows=rows,
            lm_head=(),
        )

    def _set_table(self, row: int, table: list[int]) -> bool:
        """Whether it changed. It goes on with its last page, so that nobody's page stands in it."""
        known = self._known[row]
        if known == table:
            return False
        start = len(known) if table[: len(known)] == known else 0
        host = self._host_tables[row]
        host[start : len(table)] = table[start:]
        host[len(table) :] = table[-1]
        self._known[row] = table
        return True

    def _staged(self, numel: int) -> Callable[[], None]:
        # Pinned memory comes from torch's cache, which keeps it until the copy has been made.
        staging = torch.empty(
            numel, dtype=self._buffer.dtype, pin_memory=self._buffer.device.type == "cuda"
        )
        staging.numpy()[:] = self._host[:numel]

        def send() -> None:
            self._buffer[:numel].copy_(staging, non_blocking=True)

        return send
