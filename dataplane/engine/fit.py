"""Whether a sequence could ever run in this pool, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.engine.sequence import Sequence
from dataplane.errors import PoolTooSmallError

if TYPE_CHECKING:
    from dataplane.pool.pool import PagePool


def check_fits(sequence: Sequence, adapter_pages: int, pool: PagePool) -> None:
    """adapter_pages: of its adapter, and of those that are pinned.

    Raises: PoolTooSmallError when it does not fit at full length, beside them.
    """
    # The last token is never computed, so its key needs no place.
    needed = pool.blocks_for(sequence.max_length - 1) + adapter_pages
    if needed > pool.num_pages:
        raise PoolTooSmallError(
            "POOL_TOO_SMALL",
            f"prompt of {sequence.num_prompt} tokens, max_tokens"
            f" {sequence.sampling.max_tokens}, its adapter and pinned ones take {needed} pages;"
            f" the pool has {pool.num_pages}: lower max_tokens, unpin adapters, or start the data"
            " plane with a larger --pool-bytes",
            {"needed_pages": str(needed), "num_pages": str(pool.num_pages)},
        )
