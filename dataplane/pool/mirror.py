"""What the pools of other ranks must be told, so that a page id means the same on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dataplane.engine.batch import StepPlan
    from dataplane.lora.copier import PoolCopy
    from dataplane.lora.layout import HostAdapter


class PoolMirror(Protocol):
    """Calls come from the thread that owns the pool's books, and take effect in their order."""

    @property
    def num_ranks(self) -> int:
        """This one counted."""
        ...

    def clear(self, page: int) -> None:
        """A page was taken for KV, and is zeros."""
        ...

    def install(self, host: HostAdapter, page_ids: list[int]) -> Callable[[PoolCopy], PoolCopy]:
        """An adapter is being copied there. Returns what makes of this rank's copy the one of all
        ranks; when that is cancelled, before its end or after it, the adapter is gone from all."""
        ...

    def step(self, plan: StepPlan) -> None:
        """Its forward pass is launched next."""
        ...
