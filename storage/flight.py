"""One load under way, which all who want the adapter share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from storage.load_history import Transfer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """Which adapter (`digest`) and where to get it when no tier has it (`source`, a URI), with the
    token of whoever wants it."""

    digest: str
    source: str
    token: str = field(default="", repr=False)


class Flight(Generic[T]):
    def __init__(self, ref: AdapterRef, priority: float, clock: Callable[[], float]) -> None:
        self.ref = ref
        self.priority = priority
        self.state = "queued"  # then "fetching", "building"
        self.began_s = clock()
        self.transfer = Transfer(clock)
        self.speculative = True  # nobody but prefetches waits for it
        self.waiters = 0
        self.task: asyncio.Task[T]
