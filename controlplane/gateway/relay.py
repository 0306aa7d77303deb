"""Starts generations and knows which are running."""

from __future__ import annotations

import grpc

from chorale.errors import ChoraleError
from chorale.v1 import inference_pb2 as pb
from chorale.v1.admission_pb2_grpc import AdmissionServiceStub
from controlplane.gateway.access.caller import tenant_for
from controlplane.gateway.channels import ChannelCache
from controlplane.gateway.gate import Gate
from controlplane.gateway.generation import Generation
from controlplane.gateway.links import Links
from controlplane.gateway.means import Means
from controlplane.gateway.metrics import GatewayRequests
from controlplane.gateway.outage import Outage
from controlplane.gateway.recovery import RecoveryLimits
from controlplane.gateway.unused import UnusedTickets
from controlplane.gateway.upstream import Metadata


class Relay:
    """Generations over one control plane, at most as many at once as `gate` lets in."""

    def __init__(
        self,
        control_plane: grpc.aio.Channel,
        channels: ChannelCache,
        links: Links,
        gate: Gate,
        metrics: GatewayRequests,
        limits: RecoveryLimits | None = None,
    ) -> None:
        admission = AdmissionServiceStub(control_plane)
        limits = limits or RecoveryLimits()
        self._unused = UnusedTickets(channels)
        outage = Outage(limits.outage_s)
        self._means = Means(admission, channels, links, gate, limits, metrics, self._unused, outage)

    def start(
        self, request: pb.GenerateRequest, *, timeout_s: float | None, metadata: Metadata = ()
    ) -> Generation:
        """A generation that begins when its `events` are first asked for.

        Raises: PermissionDeniedError for a tenant that is not the caller's.
        """
        request.tenant = tenant_for(request.tenant)
        return Generation(self._means, request, timeout_s, metadata)

    def end_all(self, error: ChoraleError) -> None:
        """Ends every running generation with `error`."""
        for generation in tuple(self._means.running):
            generation.end(error)

    async def close(self) -> None:
        """After the last generation."""
        await self._unused.close()
