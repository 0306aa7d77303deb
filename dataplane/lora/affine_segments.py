"""Which tokens of a batch go through an adapter that rescales or shifts projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dataplane.lora.resident import ResidentAdapter
from kernels.lora.extras import AffineSegment


def affine_layers(
    adapter_of: Callable[[str], ResidentAdapter],
    spans: Sequence[tuple[str, int, int]],
    num_layers: int,
) -> list[Mapping[str, list[AffineSegment]]]:
    """Segments per layer and projection group; empty when no adapter of the batch has any.

    spans: adapter digest and token rows [start, end), in order of start.
    """
    adapters = [(adapter_of(digest), start, end) for digest, start, end in spans]
    adapters = [each for each in adapters if each[0].layout.affine]
    if not adapters:
        return []
    layers: list[Mapping[str, list[AffineSegment]]] = []
    for layer in range(num_layers):
        groups: dict[str, list[AffineSegment]] = {}
        for adapter, start, end in adapters:
            for name, slices in adapter.layout.affine[layer].items():
                groups.setdefault(name, []).append(AffineSegment(start, end, adapter.pages, slices))
        layers.append(groups)
    return layers


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
