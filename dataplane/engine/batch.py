"""From scheduled chunks to the tensors of one forward pass."""

from __future__ import annotations

import operator
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
from kernels.gpu.dispatch import uses_triton
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.op import LoraSegments
from kernels.lora.plan import LoraSpans, SegmentGroup, plan_row

AdapterSpan = tuple[str, int, int]
"""An adapter's digest, and its rows' start and end."""


class BatchBuilder:
    def __init__(self, config: ModelConfig, pool: PagePool, resident: ResidentAdapters) -> None:
        self._config = config
        self._pool = pool
        self._resident = resident
        self._head_columns = head_columns(config)
        self._on_device = _DeviceSegments(pool)

    def build(self, chunks: Seq[Chunk]) -> Batch:
        """chunks: those of one adapter adjacent (as `Scheduler.schedule` orders them)."""
        page_tokens = self._pool.page_tokens
        token_ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        queries: list[Queries] = []
        logit_rows: list[int] = []
        spans = adapter_spans(chunks)
        logit_spans: list[AdapterSpan] = []
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
        position_tensor = self._int64(positions)
        return Batch(
            token_ids=self._int64(token_ids),
            positions=position_tensor,
            page_index=self._int64(pages),
            page_offset=position_tensor % page_tokens,
            attention=attention_metadata(queries, self._pool.device),
            layers=self._layer_segments(spans),
            affine=affine_layers(
                self._resident.held, spans, self._config.num_layers, self._pool.data
            ),
            logit_rows=self._int64(logit_rows),
            lm_head=self._head_slices(logit_spans),
            wait=self._resident.waiter(digest for digest, _, _ in spans),
        )

    def _layer_segments(self, spans: Seq[AdapterSpan]) -> Seq[LayerSegments]:
        if not spans:
            return [{}] * self._config.num_layers
        adapters = [self._resident.held(digest) for digest, _, _ in spans]
        if uses_triton(self._pool.data):
            return self._on_device.segments(spans, adapters)
        common = lora_spans(spans, adapters)
        rows = np.stack([each.layout.plan_rows for each in adapters], axis=2)
        layers: list[LayerSegments] = []
        for layer in range(self._config.num_layers):
            plans = [each.layout.layers[layer] for each in adapters]
            layers.append(
                {
                    name: SegmentGroup(
                        common,
                        rows[layer, at],
                        [each.get(name) for each in plans],
                    )
                    for at, name in enumerate(GROUPS)
                    if rows[layer, at, :, 0].any()
                }
            )
        return layers

    def _head_slices(self, spans: Seq[AdapterSpan]) -> list[HeadSlice]:
        spans = [each for each in spans if self._resident.held(each[0]).layout.head]
        if not spans:
            return []
        adapters = [self._resident.held(digest) for digest, _, _ in spans]
        common = lora_spans(spans, adapters)
        segments: Seq[LoraSegments]
        if uses_triton(self._pool.data):
            rows = [each.layout.device_head_rows for each in adapters]
            on_device = LoraBatchMetadata.of(common, rows, self._pool.device)
            segments = [on_device.group(layer, 0) for layer in range(self._config.num_layers)]
        else:
            by_layer = zip(*(each.layout.head for each in adapters), strict=True)
            segments = [
                SegmentGroup(common, np.array([*map(plan_row, plans)], dtype=np.int64), plans)
                for plans in by_layer
            ]
        placed = [(each, start, end) for each, (_, start, end) in zip(adapters, spans, strict=True)]
        return [
            HeadSlice(layer, *columns, segments[layer], affine_head(placed, layer))
            for layer, columns in enumerate(self._head_columns)
        ]

    def _int64(self, values: Seq[object]) -> torch.Tensor:
        return staged(values, torch.int64, self._pool.device)


class _DeviceSegments:
    """The layers' segments as a GPU's launches read them. The last step's serve the next one too
    when it has the same adapters over the same rows, as steps of decode mostly do."""

    def __init__(self, pool: PagePool) -> None:
        self._device = pool.device
        self._spans: Seq[AdapterSpan] = ()
        self._adapters: Seq[ResidentAdapter] = ()
        self._segments: Seq[LayerSegments] = ()

    def segments(
        self, spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]
    ) -> Seq[LayerSegments]:
        same = spans == self._spans and all(map(operator.is_, adapters, self._adapters))
        if not same:
            rows = [each.layout.device_rows for each in adapters]
            metadata = LoraBatchMetadata.of(lora_spans(spans, adapters), rows, self._device)
            ranks = np.bitwise_or.reduce([each.rows[:, :, 0] for each in rows])
            self._segments = [
                {
                    name: metadata.group(layer, at)
                    for at, name in enumerate(GROUPS)
                    if ranks[layer, at]
                }
                for layer in range(len(ranks))
            ]
            self._spans, self._adapters = spans, adapters
        return self._segments


def adapter_spans(chunks: Seq[Chunk]) -> list[AdapterSpan]:
    """chunks: those of one adapter adjacent."""
    spans: list[AdapterSpan] = []
    start = 0
    for chunk in chunks:
        end = start + chunk.num_tokens
        if chunk.sequence.adapter:
            _extend(spans, chunk.sequence.adapter.digest, start, end)
        start = end
    return spans


def lora_spans(spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]) -> LoraSpans:
    """adapters: of the spans."""
    return LoraSpans.of([each[1:] for each in spans], [each.pages for each in adapters])


def _extend(spans: list[AdapterSpan], digest: str, start: int, end: int) -> None:
    """Appends rows [start, end), joining them to the span before when it is the same adapter's."""
    if spans and spans[-1][0] == digest and spans[-1][2] == start:
        spans[-1] = (digest, spans[-1][1], end)
    else:
        spans.append((digest, start, end))
