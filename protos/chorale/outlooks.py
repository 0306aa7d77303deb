"""Outlooks as fleet.proto has them, from whichever plane's own type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chorale.v1 import fleet_pb2 as pb


class ExpectedWait(Protocol):
    @property
    def priority(self) -> int: ...
    @property
    def wait_s(self) -> float: ...


class TierCost(Protocol):
    @property
    def tier(self) -> str: ...
    @property
    def fixed_s(self) -> float: ...
    @property
    def byte_s(self) -> float: ...


class Outlook(Protocol):
    """See Outlook in fleet.proto."""

    @property
    def behind_running_s(self) -> float: ...
    @property
    def waits(self) -> Sequence[ExpectedWait]: ...
    @property
    def num_open(self) -> int: ...
    @property
    def request_s(self) -> float: ...
    @property
    def request_prefill_s(self) -> float: ...
    @property
    def decode_step_s(self) -> float: ...
    @property
    def prefill_step_s(self) -> float: ...
    @property
    def prefill_token_s(self) -> float: ...
    @property
    def max_batch_tokens(self) -> int: ...
    @property
    def computed_share(self) -> float: ...
    @property
    def tier_costs(self) -> Sequence[TierCost]: ...
    @property
    def cached_for_s(self) -> float | None: ...


def outlook_to_pb(outlook: Outlook) -> pb.Outlook:
    return pb.Outlook(
        behind_running_s=outlook.behind_running_s,
        waits=[pb.ExpectedWait(priority=w.priority, wait_s=w.wait_s) for w in outlook.waits],
        num_open=outlook.num_open,
        request_s=outlook.request_s,
        request_prefill_s=outlook.request_prefill_s,
        decode_step_s=outlook.decode_step_s,
        prefill_step_s=outlook.prefill_step_s,
        prefill_token_s=outlook.prefill_token_s,
        max_batch_tokens=outlook.max_batch_tokens,
        computed_share=outlook.computed_share,
        tier_costs=[
            pb.TierCost(tier=cost.tier, fixed_s=cost.fixed_s, byte_s=cost.byte_s)
            for cost in outlook.tier_costs
        ],
        cached_for_s=outlook.cached_for_s,
    )
