"""Counters that data planes report for people and dashboards; nothing is decided by them."""

from __future__ import annotations

import msgspec

MAX_TIERS = 8
MAX_LOAD_COUNTS = 128
_MAX_CHARS = 64


class TierCounters(msgspec.Struct, frozen=True, array_like=True):
    """See TierCounters in fleet.proto."""

    tier: str
    num_adapters: int
    size_bytes: int
    max_bytes: int
    num_hits: int
    num_misses: int
    num_evictions: int
    num_damaged: int = 0


class LoadCount(msgspec.Struct, frozen=True, array_like=True):
    """See LoadCount in fleet.proto."""

    origin: str
    outcome: str
    num_loads: int
    size_bytes: int
    queue_s: float
    read_s: float
    parse_s: float
    build_s: float


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """Of one data plane; what is beyond the bounds is left out."""

    num_loading: int = 0
    num_waiting_pins: int = 0
    tiers: list[TierCounters] = []
    load_counts: list[LoadCount] = []

    def pack(self) -> str:
        return _encoder.encode(self).decode()

    @staticmethod
    def unpack(text: str) -> Counters:
        return _decoder.decode(text) if text else Counters()


def word(text: str) -> str:
    """A name as it is kept."""
    return text[:_MAX_CHARS]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Counters)
