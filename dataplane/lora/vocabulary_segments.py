"""Which tokens of a step have embeddings, and which rows logits, of an adapter's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dataplane.lora.resident import ResidentAdapter
from dataplane.lora.vocabulary import TokenTable
from kernels.gpu.staging import staged_together
from kernels.vocabulary.plan import AdapterPages, EmbeddingSegment, HeadSegment, TokenRows

Placed = Sequence[tuple[ResidentAdapter, int, int]]
"""Adapters and their rows [start, end), in order of start."""


def embedding_segments(placed: Placed, device: torch.device) -> list[EmbeddingSegment]:
    """Empty when no adapter changes embeddings."""
    segments: list[EmbeddingSegment] = []
    for adapter, start, end in placed:
        layout = adapter.layout.vocabulary
        if layout is not None and layout.changes_embedding:
            pages, tokens = _on_device(adapter, layout.embedding_tokens, device)
            segments.append(
                EmbeddingSegment(start, end, pages, layout.embedding, tokens, layout.lora)
            )
    return segments


def head_segments(placed: Placed, device: torch.device) -> list[HeadSegment]:
    """Likewise, over logit rows, of the head."""
    segments: list[HeadSegment] = []
    for adapter, start, end in placed:
        layout = adapter.layout.vocabulary
        if layout is not None and layout.changes_head:
            pages, tokens = _on_device(adapter, layout.head_tokens, device)
            segments.append(HeadSegment(start, end, pages, layout.head, tokens))
    return segments


def _on_device(
    adapter: ResidentAdapter, tokens: TokenTable | None, device: torch.device
) -> tuple[AdapterPages, TokenRows | None]:
    ids = tokens.ids if tokens is not None else np.empty(0, dtype=np.int64)
    page_ids, token_ids = staged_together((adapter.pages.ids, ids), device)
    rows = TokenRows(token_ids, tokens.table) if tokens is not None else None
    return AdapterPages(adapter.pages, page_ids), rows
