"""From scheduled chunks to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from dataplane.engine.chunk import Chunk
from dataplane.lora.affine_segments import affine_head, affine_layers
from dataplane.lora.layout import head_columns
from dataplane.lora.resident import ResidentAdapter, ResidentAdapters
from dataplane.models.config import ModelConfig
from dataplane.models.decoder import Batch, HeadSlice, LayerSegments
from dataplane.models.shapes import GROUPS
from dataplane.pool.pool import PagePool
from dataplane.staging import staged
from kernels.attention.metadata import Queries, attention_metadata
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import LoraSpans, SegmentGroup, plan_row


class BatchBuilder:
    def __init__(self, config: ModelConfig, pool: PagePool, resident: ResidentAdapters) -> None:
        self._config = config
        self._pool = pool
        self._resident = resident
        self._head_columns = head_columns(config)

    def build(self, chunks: Seq[Chunk]) -> Batch:
        """chunks: those of one adapter adjacent (as `Scheduler.schedule` orders them)."""
        page_tokens = self._pool.page_tokens
        token_ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        queries: list[Queries] = []
        logit_rows: list[int] = []
        spans: list[tuple[str, int, int]] = []  # adapter digest, rows
        logit_spans: list[tuple[str, int, int]] = []
        for chunk in chunks:
            sequence, start = chunk.sequence, len(token_ids)
            first, last = chunk.start, chunk.end
            known = sequence.tokens[first:last]
            token_ids += known or [0]  # one that is unread is put in by the device
            positions += range(first, last)
            pages += [sequence.block_table[p // page_tokens] for p in range(first, last)]
            end = len(token_ids)
            blocks = sequence.block_table[: self._pool.blocks_for(last)]
            queries.append(Queries(start, end, last, blocks))
            if chunk.samples:
                if sequence.adapter:
                    row = len(logit_rows)
                    _extend(logit_spans, sequence.adapter.digest, row, row + 1)
                logit_rows.append(end - 1)
            if sequence.adapter:
                _extend(spans, sequence.adapter.digest, start, end)
        position_tensor = self._int64(positions)
        return Batch(
            token_ids=self._int64(token_ids),
            positions=position_tensor,
            page_index=self._int64(pages),
            page_offset=position_tensor % page_tokens,
            attention=attention_metadata(queries, self._pool.device),
            layers=self._layer_segments(spans),
            affine=affine_layers(self._adapter, spans, self._config.num_layers, self._pool.data),
            logit_rows=self._int64(logit_rows),
            lm_head=self._head_slices(logit_spans),
            wait=self._resident.waiter(digest for digest, _, _ in spans),
        )

    def _layer_segments(self, spans: Seq[tuple[str, int, int]]) -> list[LayerSegments]:
        if not spans:
            return [{}] * self._config.num_layers
        adapters = [self._adapter(digest) for digest, _, _ in spans]
        common = LoraSpans.of(
            [(start, end) for _, start, end in spans], [each.pages for each in adapters]
        )
        rows = np.stack([each.layout.plan_rows for each in adapters], axis=2)
        on_device = LoraBatchMetadata.where_read(common, rows, self._pool.data)
        layers: list[LayerSegments] = []
        for layer in range(self._config.num_layers):
            plans = [each.layout.layers[layer] for each in adapters]
            layers.append(
                {
                    name: SegmentGroup(
                        common,
                        rows[layer, at],
                        [each.get(name) for each in plans],
                        on_device and on_device.group(layer, at),
                    )
                    for at, name in enumerate(GROUPS)
                    if rows[layer, at, :, 0].any()
                }
            )
        return layers

    def _head_slices(self, spans: Seq[tuple[str, int, int]]) -> list[HeadSlice]:
        adapters = [(self._adapter(digest), start, end) for digest, start, end in spans]
        adapters = [each for each in adapters if each[0].layout.head]
        if not adapters:
            return []
        common = LoraSpans.of(
            [(start, end) for _, start, end in adapters], [each.pages for each, _, _ in adapters]
        )
        plans = list(zip(*(each.layout.head for each, _, _ in adapters), strict=True))  # by layer
        rows = np.array([[[plan_row(each) for each in layer]] for layer in plans], dtype=np.int64)
        on_device = LoraBatchMetadata.where_read(common, rows, self._pool.data)
        return [
            HeadSlice(
                layer,
                *columns,
                SegmentGroup(
                    common,
                    rows[layer, 0],
                    plans[layer],
                    on_device and on_device.group(layer, 0),
                ),
                affine_head(adapters, layer),
            )
            for layer, columns in enumerate(self._head_columns)
        ]

    def _adapter(self, digest: str) -> ResidentAdapter:
        resident = self._resident.get(digest)
        assert resident is not None  # held by the running sequence
        return resident

    def _int64(self, values: Seq[object]) -> torch.Tensor:
        return staged(values, torch.int64, self._pool.device)


def _extend(spans: list[tuple[str, int, int]], digest: str, start: int, end: int) -> None:
    """Appends rows [start, end), joining them to the span before when it is the same adapter's."""
    if spans and spans[-1][0] == digest and spans[-1][2] == start:
        spans[-1] = (digest, spans[-1][1], end)
    else:
        spans.append((digest, start, end))
