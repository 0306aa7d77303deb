from __future__ import annotations

from tests.gateway.conftest import client, fleet, gateway

__all__ = ["client", "fleet", "gateway"]
