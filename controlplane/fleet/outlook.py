"""What a data plane reports of the time to a first token there."""

from __future__ import annotations

import msgspec

MAX_WAITS = 32
MAX_TIERS = 8


class ExpectedWait(msgspec.Struct, frozen=True, array_like=True):
    priority: int
    wait_s: float


class TierCost(msgspec.Struct, frozen=True, array_like=True):
    tier: str
    fixed_s: float
    byte_s: float


class Outlook(msgspec.Struct, frozen=True, array_like=True):
    """See Outlook in fleet.proto, and beside it in Load the three fields of that name.

    max_batch_tokens: 0 while nothing was measured.
    """

    ttft_slo_s: float = 0.0
    characters_per_token: float = 0.0
    behind_running_s: float = 0.0
    waits: tuple[ExpectedWait, ...] = ()
    num_open: int = 0
    request_s: float = 0.0
    request_prefill_s: float = 0.0
    decode_step_s: float = 0.0
    prefill_step_s: float = 0.0
    prefill_token_s: float = 0.0
    max_batch_tokens: int = 0
    computed_share: float = 1.0
    tier_costs: tuple[TierCost, ...] = ()
    cached_for_s: float | None = None  # None: a data plane that does not tell
    path_s: float = 0.0

    @property
    def is_measured(self) -> bool:
        return self.max_batch_tokens > 0

    def wait_s(self, priority: int) -> float:
        """Of a request that comes when the report is made."""
        ahead = [each.wait_s for each in self.waits if each.priority >= priority]
        return max(ahead, default=self.behind_running_s)

    def pack(self) -> str:
        return _encoder.encode(self).decode()

    @staticmethod
    def unpack(text: str) -> Outlook:
        return _decoder.decode(text) if text else Outlook()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Outlook)
