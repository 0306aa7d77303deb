"""Between Load's outlook and the domain's."""

from __future__ import annotations

import math

from chorale.outlooks import outlook_to_pb
from chorale.v1 import fleet_pb2 as pb
from controlplane.fleet.counters import word
from controlplane.fleet.outlook import MAX_TIERS, MAX_WAITS, ExpectedWait, Outlook, TierCost


def outlook_from_pb(load: pb.Load) -> Outlook:
    """What is no time or no number is taken as 0."""
    outlook = load.outlook
    return Outlook(
        ttft_slo_s=_amount(load.ttft_slo_s),
        characters_per_token=_amount(load.characters_per_token),
        behind_running_s=_amount(outlook.behind_running_s),
        waits=tuple(
            ExpectedWait(each.priority, _amount(each.wait_s)) for each in outlook.waits[:MAX_WAITS]
        ),
        num_open=outlook.num_open,
        request_s=_amount(outlook.request_s),
        request_prefill_s=_amount(outlook.request_prefill_s),
        decode_step_s=_amount(outlook.decode_step_s),
        prefill_step_s=_amount(outlook.prefill_step_s),
        prefill_token_s=_amount(outlook.prefill_token_s),
        max_batch_tokens=outlook.max_batch_tokens,
        computed_share=min(1.0, _amount(outlook.computed_share)),
        tier_costs=tuple(
            TierCost(word(each.tier), _amount(each.fixed_s), _amount(each.byte_s))
            for each in outlook.tier_costs[:MAX_TIERS]
        ),
        cached_for_s=_amount(outlook.cached_for_s) if outlook.HasField("cached_for_s") else None,
        path_s=_amount(load.path_s),
    )


def add_outlook(load: pb.Load, outlook: Outlook) -> None:
    """Fills it into `load`."""
    load.ttft_slo_s = outlook.ttft_slo_s
    load.characters_per_token = outlook.characters_per_token
    load.path_s = outlook.path_s
    if not outlook.is_measured:
        return
    load.outlook.CopyFrom(outlook_to_pb(outlook))


def _amount(value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        return 0.0
    return float(f"{value:.4g}")  # read at each admission: kept short
