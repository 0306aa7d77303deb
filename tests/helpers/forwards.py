"""What tests put around an engine's forward passes: to count them, and to guard their pages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from tests.helpers.engine import Rig

Forward = Callable[[Any, torch.Tensor, int], torch.Tensor]
_WAIT_S = 60.0  # for what happens in milliseconds, unless it never does


def wrap_forward(rig: Rig, wrap: Callable[[Forward], Forward]) -> None:
    decoder = rig.engine._decoder
    decoder.forward = wrap(decoder.forward)  # pyright: ignore[reportAttributeAccessIssue]


def count_forwards(rig: Rig) -> list[int]:
    """Grows by the number of tokens of each forward pass."""
    counts: list[int] = []

    def wrap(forward: Forward) -> Forward:
        def counting(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            counts.append(len(batch.token_ids))
            return forward(batch, pool, page_tokens)

        return counting

    wrap_forward(rig, wrap)
    return counts


def guard_pages(rig: Rig, *, late: bool) -> None:
    """Fails a step if a page that it writes or reads changed hands between its being built and the
    end of its forward pass. late: the device begins a step only when its tokens are waited for, and
    so after all that the host does meanwhile."""
    engine, allocator = rig.engine, rig.pool.allocator
    pipeline, batches = engine._pipeline, engine._batches
    build, collect = batches.build, pipeline.collect
    owners: dict[int, dict[int, str]] = {}
    wanted = threading.Semaphore(0)

    def guarding_build(chunks: Any) -> Any:
        batch = build(chunks)
        pages = {page for chunk in chunks for page in chunk.sequence.block_table}
        owners[id(batch)] = {page: allocator._owners[page] for page in pages}
        return batch

    def wanting_collect() -> Any:
        wanted.release()
        return collect()

    def wrap(forward: Forward) -> Forward:
        def guarded(batch: Any, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
            if late:
                assert wanted.acquire(timeout=_WAIT_S)
            logits = forward(batch, pool, page_tokens)
            written = set(batch.page_index.tolist())
            for page, owner in owners.pop(id(batch)).items():
                now = allocator._owners[page]
                shared = owner.startswith("sequence:") and now.startswith("prefix:")
                assert now == owner or (shared and page not in written), (page, owner, now)
            return logits

        return guarded

    batches.build = guarding_build  # pyright: ignore[reportAttributeAccessIssue]
    pipeline.collect = wanting_collect  # pyright: ignore[reportAttributeAccessIssue]
    wrap_forward(rig, wrap)
