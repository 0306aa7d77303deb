"""What a key is good for."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """GENERATE: generations, tickets, tokens of texts. OBSERVE: metrics, the registry, the fleet,
    demand and tenants' limits, read only. MANAGE: all that changes these, and reading them."""

    GENERATE = "generate"
    OBSERVE = "observe"
    MANAGE = "manage"
