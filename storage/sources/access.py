"""On whose behalf a source is read, and who hears of the progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Progress(NamedTuple):
    """Of one file of an adapter; `total_bytes` is None while the source has not told it."""

    file: str
    received_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Access:
    """token: the caller's own, shown to the source and to nobody else; empty reads what everybody
    may read. The server's own credentials never stand in for it. on_progress: called on the event
    loop now and then while files arrive."""

    token: str = field(default="", repr=False)
    on_progress: Callable[[Progress], None] | None = field(default=None, compare=False)


ANYBODY = Access()
