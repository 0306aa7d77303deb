"""What an engine tells of its tiers and loads; messages of dataplane.channel carry these."""

from __future__ import annotations

import msgspec

REPORTED_LOADS = 32
"""At most so many loads under way, and so many waiting pins, are told of one by one."""


class TierCounters(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """As TierCounters in fleet.proto: a lookup that misses goes on in the next tier, of "pool",
    "host", "disk"."""

    tier: str
    num_adapters: int
    size_bytes: int
    max_bytes: int
    num_hits: int
    num_misses: int
    num_evictions: int
    num_damaged: int = 0


class LoadUnderWay(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """As storage.load_history.LoadUnderWay; waited_s: since it was asked for."""

    digest: str
    origin: str
    state: str
    received_bytes: int
    total_bytes: int
    bytes_per_s: float
    waited_s: float


class WaitingPin(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A pinned adapter that is not in its tier yet. reason: PIN_POOL_FULL, PIN_HOST_FULL, or that
    of the error with which it could not be loaded; it is tried again."""

    digest: str
    tier: str
    reason: str


class AdapterLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A load into host memory that has ended, `age_s` ago; tier: "disk" or "source". Seconds, as
    storage.loader.LoadTimings has them; copy_s: of its last copy into the pool, 0 when there was
    none. One that failed has a reason, and neither size nor parts."""

    digest: str
    tier: str
    size_bytes: int
    read_s: float
    parse_s: float
    build_s: float
    queue_s: float = 0.0
    copy_s: float = 0.0
    age_s: float = 0.0
    origin: str = ""
    reason: str = ""
    message: str = ""


class TierCost(msgspec.Struct, frozen=True, array_like=True):
    """What getting an adapter takes that is in `tier` ("host", "disk" or "source") until it is in
    the pool: a fixed part, and one for each byte of its weights file."""

    tier: str
    fixed_s: float
    byte_s: float


class ExpectedWait(msgspec.Struct, frozen=True, array_like=True):
    """Of a request that comes now, behind all that wait at `priority` or above."""

    priority: int
    wait_s: float


class Outlook(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a first token takes here, by what was measured; see Outlook in fleet.proto."""

    behind_running_s: float
    waits: list[ExpectedWait]  # highest priority first
    num_open: int
    request_s: float
    request_prefill_s: float
    decode_step_s: float
    prefill_step_s: float
    prefill_token_s: float
    max_batch_tokens: int
    computed_share: float
    tier_costs: list[TierCost]  # of the tiers that were measured
    cached_for_s: float = 0.0
