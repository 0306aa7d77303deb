"""How an adapter's rows of the vocabulary lie in its pages: its own embedding or head, rows of some
tokens, and the matrices of a LoRA on the embedding.

Such a matrix is spread over the layers by rows: the first `rows_per_layer` lie end to end in the
pages' slice of layer 0, from `offset` on, the next ones at the same place of layer 1, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kernels.lora.plan import PageRun


class RowTable(NamedTuple):
    """A matrix [num_rows, width]. offset: in elements of a layer's flat array of the pages."""

    num_rows: int
    width: int
    rows_per_layer: int
    offset: int

    @staticmethod
    def spread(num_rows: int, width: int, num_layers: int, offset: int) -> RowTable:
        return RowTable(num_rows, width, -(-num_rows // num_layers), offset)

    @property
    def end(self) -> int:
        """The first offset behind it, in every layer."""
        return self.offset + self.rows_per_layer * self.width

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """Layer, first row there and the row after the last; layers without rows are left out."""
        for layer, first in enumerate(range(0, self.num_rows, self.rows_per_layer)):
            yield layer, first, min(first + self.rows_per_layer, self.num_rows)


class TokenRows(NamedTuple):
    """Row i of the table belongs to token ids[i]."""

    ids: torch.Tensor  # [table.num_rows] int64, ascending, device
    table: RowTable


@dataclass(frozen=True)
class AdapterPages:
    """An adapter's pages as the host knows them, and where the device reads their ids."""

    run: PageRun
    ids: torch.Tensor  # [num_pages] int64, device


@dataclass(frozen=True)
class EmbeddingSegment:
    """Tokens [start, end) of a batch whose adapter changes their embeddings. None: not in this way.

    whole: its own embedding, [vocab, hidden]. tokens: rows of some tokens, hidden wide.
    lora: A transposed, [vocab, rank], and scaling * B transposed, [rank, hidden].
    """

    start: int
    end: int
    pages: AdapterPages
    whole: RowTable | None = None
    tokens: TokenRows | None = None
    lora: tuple[RowTable, RowTable] | None = None


@dataclass(frozen=True)
class HeadSegment:
    """Logit rows [start, end) whose adapter replaces the head, or its rows of some tokens."""

    start: int
    end: int
    pages: AdapterPages
    whole: RowTable | None = None
    tokens: TokenRows | None = None
