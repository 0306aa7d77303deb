"""The fleet as the script of admission tells it: one text, which is read for each request."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from controlplane.fleet.model import Load
from controlplane.fleet.outlook import Outlook

# As admit.lua has them; no name and no JSON holds the first two.
_FIELDS, _ROWS, _ITEMS = "\t", "\n", ","
_REMEMBERED = 4096
# What a data plane reports stays the same for a second, and for as many requests as come in it.
_load = lru_cache(_REMEMBERED)(Load.unpack)
_outlook = lru_cache(_REMEMBERED)(Outlook.unpack)


class PlaneRow(NamedTuple):
    """A live data plane. sent: as admit.lua has it."""

    data_plane_id: str
    endpoint: str
    base_model: str
    load: Load
    last_heartbeat_ms: int
    num_placed: int
    tier: str
    outlook: Outlook
    sent: list[int]


def decode_rows(text: str) -> list[PlaneRow]:
    return [_row(row) for row in text.split(_ROWS)] if text else []


def _row(row: str) -> PlaneRow:
    name, endpoint, base_model, load, heartbeat_ms, placed, tier, outlook, sent = row.split(_FIELDS)
    return PlaneRow(
        name,
        endpoint,
        base_model,
        _load(load),
        int(heartbeat_ms),
        int(placed),
        tier,
        _outlook(outlook),
        [int(each) for each in sent.split(_ITEMS)] if sent else [],
    )
