"""Which tokens of a batch go through an adapter that rescales or shifts projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataplane.lora.resident import ResidentAdapter
from dataplane.models.shapes import GROUPS
from kernels.lora.extras import AFFINE_ROW, AffineGroup, AffineSegment, affine_row
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import LoraSpans


def affine_layers(
    adapters: Sequence[ResidentAdapter],
    spans: Sequence[tuple[str, int, int]],
    num_layers: int,
    pool: torch.Tensor,
) -> list[Mapping[str, AffineGroup]]:
    """Segments per layer and projection group; empty when no adapter of the batch has any.

    spans: of the adapters: digest and token rows [start, end), in order of start.
    pool: on the device where they will be used.
    """
    placed = [
        (adapter, start, end)
        for adapter, (_, start, end) in zip(adapters, spans, strict=True)
        if adapter.layout.affine
    ]
    if not placed:
        return []
    on_device = LoraBatchMetadata.where_read(
        LoraSpans.of([each[1:] for each in placed], [each[0].pages for each in placed]),
        _rows([each[0] for each in placed], num_layers),
        pool,
        AFFINE_ROW,
    )
    layers: list[Mapping[str, AffineGroup]] = []
    for layer in range(num_layers):
        groups: dict[str, list[AffineSegment]] = {}
        for adapter, start, end in placed:
            for name, slices in adapter.layout.affine[layer].items():
                groups.setdefault(name, []).append(AffineSegment(start, end, adapter.pages, slices))
        layers.append(
            {
                name: AffineGroup(segments, on_device and on_device.group(layer, at))
                for at, name in enumerate(GROUPS)
                if (segments := groups.get(name))
            }
        )
    return layers


def _rows(adapters: Sequence[ResidentAdapter], num_layers: int) -> np.ndarray[Any, Any]:
    """[num_layers, num_groups, n, AFFINE_FIELDS]; 0 where an adapter has nothing."""
    return np.array(
        [
            [
                [affine_row(a.layout.affine[layer].get(name, ())) for a in adapters]
                for name in GROUPS
            ]
            for layer in range(num_layers)
        ],
        dtype=np.int64,
    )


def affine_head(
    adapters: Sequence[tuple[ResidentAdapter, int, int]], layer: int
) -> list[AffineSegment]:
    """Segments over logit rows, of the head's columns that lie in `layer`.

    adapters: those with a head, and their rows.
    """
    return [
        AffineSegment(start, end, adapter.pages, adapter.layout.head_affine[layer])
        for adapter, start, end in adapters
        if adapter.layout.head_affine
    ]
