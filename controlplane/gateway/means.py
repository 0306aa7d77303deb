"""What generations run on, all of a gateway's alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlplane.gateway.channels import ChannelCache
from controlplane.gateway.gate import Gate
from controlplane.gateway.links import Links
from controlplane.gateway.metrics import GatewayRequests
from controlplane.gateway.objective import Ways
from controlplane.gateway.outage import Outage
from controlplane.gateway.recovery import RecoveryLimits
from controlplane.gateway.unused import UnusedTickets

if TYPE_CHECKING:
    from controlplane.gateway.generation import Generation


@dataclass(frozen=True, slots=True)
class Means:
    """running: the generations themselves, while they do."""

    admission: Any  # an AdmissionServiceStub
    channels: ChannelCache
    links: Links
    gate: Gate
    limits: RecoveryLimits
    metrics: GatewayRequests
    unused: UnusedTickets
    outage: Outage
    ways: Ways = field(default_factory=Ways)
    running: set[Generation] = field(default_factory=set["Generation"])
