"""What the adapters of a step do to its rows, made anew only where the step before was another.

A step of decode mostly has the adapters of the one before it, over the same rows. What is kept is
never changed, so a step in flight may go on using it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Generic, NamedTuple, Protocol, TypeVar
from weakref import ref

import numpy as np

from dataplane.lora.affine_segments import affine_head, affine_layers
from dataplane.lora.layout import head_columns
from dataplane.lora.resident import ResidentAdapter
from dataplane.lora.vocabulary_segments import embedding_segments, head_segments
from dataplane.models.config import ModelConfig
from dataplane.models.decoder import HeadSlice, LayerAffine, LayerSegments
from dataplane.models.shapes import group_names
from dataplane.pool.pool import PagePool
from kernels.gpu.dispatch import uses_triton
from kernels.lora.layered import LayeredSegments
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.op import LoraSegments
from kernels.lora.plan import LoraSpans, SegmentGroup, plan_row
from kernels.vocabulary.plan import EmbeddingSegment, HeadSegment

_Made = TypeVar("_Made")

AdapterSpan = tuple[str, int, int]
"""An adapter's digest, and its rows' start and end."""


class HeldAdapters(Protocol):
    """Adapters in the pool, as `dataplane.lora.resident.ResidentAdapters`."""

    def held(self, digest: str) -> ResidentAdapter: ...

    def waiter(self, digests: Iterable[str]) -> Callable[[int], None] | None: ...


class LayerParts(NamedTuple):
    """Over a step's rows, for each layer."""

    segments: Seq[LayerSegments]
    affine: Seq[LayerAffine]  # empty when no adapter of the step needs it
    embedding: Seq[EmbeddingSegment] = ()  # likewise


class HeadParts(NamedTuple):
    """Over a step's logit rows; each empty when no adapter needs it."""

    lora: Seq[HeadSlice] = ()
    rows: Seq[HeadSegment] = ()


class StepAdapters:
    """Spans are in order of start; adapters must be in the pool, or on their way there."""

    def __init__(self, config: ModelConfig, pool: PagePool, resident: HeldAdapters) -> None:
        self._pool = pool
        self._group_names = group_names(config)
        self._head_columns = head_columns(config)
        self._none = LayerParts([{}] * config.num_layers, ())
        self._layers = _Kept(resident, self._make_layers)
        self._head = _Kept(resident, self._make_head)

    def layers(self, spans: Seq[AdapterSpan]) -> LayerParts:
        return self._layers.of(spans) if spans else self._none

    def head(self, spans: Seq[AdapterSpan]) -> HeadParts:
        """spans: of logit rows."""
        return self._head.of(spans) if spans else HeadParts()

    def _make_layers(self, spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]) -> LayerParts:
        common = lora_spans(spans, adapters)
        affine = affine_layers(adapters, spans, len(self._none.segments), self._pool.data)
        embedding = embedding_segments(_placed(spans, adapters), self._pool.device)
        if uses_triton(self._pool.data):
            return LayerParts(self._on_device(common, adapters), affine, embedding)
        plans = np.stack([each.layout.plan_rows for each in adapters], axis=2)
        layers = [each.layout.layers for each in adapters]
        return LayerParts(
            LayeredSegments(common, self._group_names, plans, layers), affine, embedding
        )

    def _on_device(self, common: LoraSpans, adapters: Seq[ResidentAdapter]) -> Seq[LayerSegments]:
        """As a GPU's launches read them."""
        names = self._group_names
        rows = [each.layout.device_rows for each in adapters]
        metadata = LoraBatchMetadata.of(common, rows, self._pool.device)
        ranks = np.bitwise_or.reduce([each.rows[:, :, 0] for each in rows])
        return [
            {name: metadata.group(layer, at) for at, name in enumerate(names) if ranks[layer, at]}
            for layer in range(len(ranks))
        ]

    def _make_head(self, spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]) -> HeadParts:
        rows = head_segments(_placed(spans, adapters), self._pool.device)
        return HeadParts(self._make_head_lora(spans, adapters), rows)

    def _make_head_lora(
        self, spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]
    ) -> Seq[HeadSlice]:
        some = [at for at, each in enumerate(adapters) if each.layout.head]
        if not some:
            return ()
        spans, adapters = [spans[at] for at in some], [adapters[at] for at in some]
        common = lora_spans(spans, adapters)
        segments: Seq[LoraSegments]
        if uses_triton(self._pool.data):
            rows = [each.layout.device_head_rows for each in adapters]
            on_device = LoraBatchMetadata.of(common, rows, self._pool.device)
            segments = [on_device.group(layer, 0) for layer in range(len(self._head_columns))]
        else:
            by_layer = zip(*(each.layout.head for each in adapters), strict=True)
            segments = [
                SegmentGroup(common, np.array([*map(plan_row, plans)], dtype=np.int64), plans)
                for plans in by_layer
            ]
        placed = _placed(spans, adapters)
        return [
            HeadSlice(layer, *columns, segments[layer], affine_head(placed, layer))
            for layer, columns in enumerate(self._head_columns)
        ]


class _Kept(Generic[_Made]):
    """What was last made of spans and their adapters. These are compared as objects: an adapter
    that was evicted and has come back, maybe to other pages, is another one. They are not kept
    alive: of one that is gone no other can be taken for it."""

    def __init__(
        self,
        resident: HeldAdapters,
        make: Callable[[Seq[AdapterSpan], Seq[ResidentAdapter]], _Made],
    ) -> None:
        self._resident = resident
        self._make = make
        self._last: tuple[Seq[AdapterSpan], Seq[ref[ResidentAdapter]], _Made] | None = None

    def of(self, spans: Seq[AdapterSpan]) -> _Made:
        adapters = [self._resident.held(digest) for digest, _, _ in spans]
        if self._last is not None:
            last_spans, last_adapters, made = self._last
            if spans == last_spans and all(
                last() is adapter for last, adapter in zip(last_adapters, adapters, strict=True)
            ):
                return made
        made = self._make(spans, adapters)
        self._last = spans, [ref(adapter) for adapter in adapters], made
        return made


def _placed(
    spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]
) -> list[tuple[ResidentAdapter, int, int]]:
    return [(each, start, end) for each, (_, start, end) in zip(adapters, spans, strict=True)]


def lora_spans(spans: Seq[AdapterSpan], adapters: Seq[ResidentAdapter]) -> LoraSpans:
    """adapters: of the spans."""
    return LoraSpans.of([each[1:] for each in spans], [each.pages for each in adapters])
