"""What a data plane reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from controlplane.fleet.counters import Counters
from controlplane.fleet.outlook import Outlook

TIERS = ("pool", "host", "disk")


@dataclass(frozen=True, slots=True)
class Load:
    """See Load in fleet.proto. All zero before the first heartbeat."""

    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 0
    num_pages: int = 0
    num_available_pages: int = 0
    num_generated_tokens: int = 0
    # Of prefetches.
    num_prefetch_hits: int = 0
    num_prefetch_late: int = 0
    prefetch_late_ms: int = 0
    prefetch_wasted_bytes: int = 0
    num_prefetch_failed: int = 0
    num_prefetch_refused: int = 0
    num_prefetch_asked: int = 0

    def pack(self) -> str:
        return " ".join(str(getattr(self, each.name)) for each in fields(self))

    @staticmethod
    def unpack(text: str) -> Load:
        return Load(*map(int, text.split()))


@dataclass(frozen=True, slots=True)
class Residency:
    """Digests by tier; each stands in the fastest one that holds it."""

    pool: Sequence[str] = ()
    host: Sequence[str] = ()
    disk: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class DataPlane:
    """A live one with its last report. last_heartbeat_ms: since the Unix epoch."""

    data_plane_id: str
    incarnation: int
    endpoint: str
    base_model: str
    load: Load
    residency: Residency
    last_heartbeat_ms: int
    counters: Counters = field(default_factory=Counters)
    outlook: Outlook = field(default_factory=Outlook)
