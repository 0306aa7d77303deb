"""What tenants were charged for and their requests did not come to, told with heartbeats."""

from __future__ import annotations

from chorale.v1 import fleet_pb2

_MAX_TENANTS = 10_000  # waiting to be told, while the control plane is away
_MAX_TOLD = 1000  # as Settlement has it


class Settlements:
    """Each batch has a number and is told until an answer comes, so that it counts once however
    often it arrives. What is under way when the data plane joins anew is dropped: it may have
    arrived, and a charge too high passes by itself."""

    def __init__(self) -> None:
        self._waiting: dict[str, int] = {}
        self._under_way: dict[str, int] = {}
        self._number = 0

    def note(self, tenant: str, charged_tokens: int, used_tokens: int) -> None:
        """A request has finished. charged_tokens: of its ticket; 0: nothing was charged."""
        unused = charged_tokens - used_tokens
        if not charged_tokens or not unused:
            return
        if tenant in self._waiting or len(self._waiting) < _MAX_TENANTS:
            self._waiting[tenant] = self._waiting.get(tenant, 0) + unused

    def next(self) -> fleet_pb2.Settlement | None:
        """For the heartbeat that is sent now."""
        if not self._under_way:
            for tenant in list(self._waiting)[:_MAX_TOLD]:
                self._under_way[tenant] = self._waiting.pop(tenant)
            self._number += bool(self._under_way)
        if not self._under_way:
            return None
        return fleet_pb2.Settlement(
            number=self._number,
            unused=[
                fleet_pb2.TenantTokens(tenant=tenant, num_tokens=num_tokens)
                for tenant, num_tokens in self._under_way.items()
            ],
        )

    def arrived(self) -> None:
        """The heartbeat was answered."""
        self._under_way = {}

    def joined(self) -> None:
        """The control plane knows of no number any more."""
        self._under_way = {}
