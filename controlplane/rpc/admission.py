"""AdmissionService."""

from __future__ import annotations

from typing import Any

import grpc

from chorale.objective import ttft_path_s, ttft_slo_s
from chorale.source_token import source_token_of
from chorale.v1 import admission_pb2 as pb
from chorale.v1.admission_pb2_grpc import AdmissionServiceServicer
from controlplane.admission.admission import Admission
from controlplane.admission.prefixes import ToldPrefixes
from controlplane.metrics import ControlPlaneMetrics
from controlplane.placement.expectation import RequestNeeds
from controlplane.rpc import translate

Context = grpc.aio.ServicerContext[Any, Any]


class AdmissionHandlers(AdmissionServiceServicer):
    def __init__(self, admission: Admission, metrics: ControlPlaneMetrics) -> None:
        self._admission = admission
        self._metrics = metrics

    async def Admit(self, request: pb.AdmitRequest, context: Context) -> pb.AdmitResponse:
        with self._metrics.admission(request.tenant):
            admitted = await self._admission.admit(
                request.model,
                tenant=request.tenant,
                excluded=request.excluded_data_plane_ids,
                source_token=source_token_of(context.invocation_metadata()),
                routing_key=request.routing_key,
                needs=_needs(request),
                continued_ticket=request.continued_ticket,
                told=ToldPrefixes(request.prompt_prefixes.hashes, request.prompt_prefixes.lengths),
            )
        self._metrics.placed(admitted.choice)
        model = admitted.model
        return pb.AdmitResponse(
            endpoint=admitted.data_plane.endpoint,
            data_plane_id=admitted.data_plane.data_plane_id,
            ticket=admitted.ticket,
            expires_at=translate.timestamp(admitted.expires_at_ms),
            model=model.adapter or model.base_model,
            adapter_version=model.version,
            adapter_digest=model.digest,
        )


def _needs(request: pb.AdmitRequest) -> RequestNeeds:
    """Raises: InvalidArgumentError."""
    size = request.prompt_size
    return RequestNeeds(
        num_tokens=size.num_tokens,
        num_characters=size.num_characters,
        num_generated=size.num_generated_tokens,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        priority=request.priority,
        ttft_slo_s=ttft_slo_s(request),
        ttft_path_s=ttft_path_s(request),
    )
