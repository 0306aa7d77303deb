"""An adapter's own rows of the vocabulary: where they go in its pages, and packing them there.

They lie behind everything else of a layer's flat array, so that nothing else moves for them; see
kernels/vocabulary/plan.py for the form. A matrix that is embedding and head lies there once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dataplane.lora.tensors import stored_rows, stored_tensor
from dataplane.lora.vocabulary_parts import VocabularyParts
from dataplane.models.config import ModelConfig
from kernels.vocabulary.plan import RowTable
from storage import pace
from storage.adapter.manifest import ParsedAdapter
from storage.adapter.vocabulary import TrainedTokens
from storage.adapter.weights import TensorRef

_ROWS_AT_ONCE = 1024
_VECTOR = 8


class TokenTable(NamedTuple):
    """Row i of the table belongs to token ids[i]."""

    ids: np.ndarray[Any, Any]  # [n] int64, ascending
    table: RowTable


class VocabularyLayout(NamedTuple):
    """None: as the base has it."""

    embedding: RowTable | None
    head: RowTable | None
    embedding_tokens: TokenTable | None
    head_tokens: TokenTable | None
    lora: tuple[RowTable, RowTable] | None  # A transposed, scaling * B transposed

    @property
    def changes_embedding(self) -> bool:
        return bool(self.embedding or self.embedding_tokens or self.lora)

    @property
    def changes_head(self) -> bool:
        return bool(self.head or self.head_tokens)

    @property
    def nbytes(self) -> int:
        """That it takes of host memory beside the pages."""
        tables = {
            id(each.ids): each.ids for each in (self.embedding_tokens, self.head_tokens) if each
        }
        return sum(ids.nbytes for ids in tables.values())


def plan_vocabulary(
    config: ModelConfig, parts: VocabularyParts, offset: int
) -> tuple[VocabularyLayout | None, int]:
    """The layout from `offset` on, a whole vector's, and the offset behind it. None: no parts."""
    if parts.are_base:
        return None, offset
    tables: dict[str, RowTable] = {}

    def place(name: str, num_rows: int, width: int) -> RowTable:
        nonlocal offset
        if name not in tables:
            tables[name] = RowTable.spread(num_rows, width, config.num_layers, offset)
            offset = -(-tables[name].end // _VECTOR) * _VECTOR
        return tables[name]

    def whole(ref: TensorRef | None) -> RowTable | None:
        return ref and place(ref.name, *ref.shape)

    token_tables: dict[str, TokenTable] = {}

    def tokens(trained: TrainedTokens | None) -> TokenTable | None:
        if trained is None:
            return None
        name = trained.ref.name
        if name not in token_tables:
            ids = np.sort(np.array(trained.indices, dtype=np.int64))
            token_tables[name] = TokenTable(ids, place(name, *trained.ref.shape))
        return token_tables[name]

    lora = None
    if (module := parts.lora) is not None:
        lora = (
            place(module.a.name, module.a.shape[1], module.rank),
            place(module.b.name, module.rank, module.b.shape[0]),
        )
    layout = VocabularyLayout(
        whole(parts.embedding),
        whole(parts.head),
        tokens(parts.embedding_tokens),
        tokens(parts.head_tokens),
        lora,
    )
    return layout, offset


def pack_vocabulary(
    flat: torch.Tensor, layout: VocabularyLayout, parts: VocabularyParts, adapter: ParsedAdapter
) -> None:
    """flat: [num_layers, elems] of the pages. Scaling is folded into B in float32."""
    for table, ref in {layout.embedding: parts.embedding, layout.head: parts.head}.items():
        if table is not None and ref is not None:
            for first, last, target in _targets(flat, table):
                target.copy_(stored_rows(adapter, ref, first, last))
    for tokens, trained in (
        (layout.embedding_tokens, parts.embedding_tokens),
        (layout.head_tokens, parts.head_tokens),
    ):
        if tokens is not None and trained is not None:
            order = torch.from_numpy(np.argsort(np.array(trained.indices, dtype=np.int64)))
            _write(flat, tokens.table, stored_tensor(adapter, trained.ref)[order])
    if layout.lora is not None and (module := parts.lora) is not None:
        a, b = layout.lora
        _write(flat, a, stored_tensor(adapter, module.a).t())
        _write(flat, b, (stored_tensor(adapter, module.b).float() * module.scaling).t())


def _write(flat: torch.Tensor, table: RowTable, rows: torch.Tensor) -> None:
    for first, last, target in _targets(flat, table):
        target.copy_(rows[first:last])


def _targets(flat: torch.Tensor, table: RowTable) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Where rows [first, last) go, some at a time."""
    for layer, begin, end in table.parts():
        for first in range(begin, end, _ROWS_AT_ONCE):
            pace.rest()
            last = min(first + _ROWS_AT_ONCE, end)
            at = table.offset + (first - begin) * table.width
            target = flat[layer, at : at + (last - first) * table.width]
            yield first, last, target.view(last - first, table.width)
