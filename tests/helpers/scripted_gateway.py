"""A gateway with scripted answers, in threads, for tests of clients that block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_status import rpc_status

from chorale.errors import ChoraleError, NotFoundError
from chorale.status import to_status
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admin_pb2 as admin_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1 import inference_pb2 as inference_pb
from chorale.v1 import tenant_pb2 as tenant_pb
from chorale.v1.adapter_registry_pb2_grpc import (
    AdapterRegistryServiceServicer,
    add_AdapterRegistryServiceServicer_to_server,
)
from chorale.v1.admin_pb2_grpc import (
    DataPlaneAdminServiceServicer,
    add_DataPlaneAdminServiceServicer_to_server,
)
from chorale.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from chorale.v1.inference_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from chorale.v1.tenant_pb2_grpc import TenantServiceServicer, add_TenantServiceServicer_to_server


class ScriptedGateway(
    AdapterRegistryServiceServicer,
    DataPlaneAdminServiceServicer,
    FleetServiceServicer,
    InferenceServiceServicer,
    TenantServiceServicer,
):
    """`answers` by RPC name: a response, a list of them for a stream, an error, or a function of
    the request that returns one of these. A list may end in an error. `requests` holds what came,
    `metadata` what came with it. It answers as a data plane, too.
    """

    def __init__(self) -> None:
        self.address = ""
        self.answers: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    def _answer(self, rpc: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        default = NotFoundError("NOT_SCRIPTED", f"{rpc} has no scripted answer")
        answer = self.answers.get(rpc, default)
        answer = answer(request) if callable(answer) else answer
        if isinstance(answer, ChoraleError):
            context.abort_with_status(rpc_status.to_status(to_status(answer)))
        return answer

    def Generate(
        self, request: inference_pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb.GenerateResponse]:
        for event in self._answer("Generate", request, context):
            if isinstance(event, ChoraleError):
                context.abort_with_status(rpc_status.to_status(to_status(event)))
            yield event


def _scripted(rpc: str) -> Callable[..., Any]:
    def method(self: ScriptedGateway, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer(rpc, request, context)

    return method


for _file in (registry_pb, admin_pb, fleet_pb, tenant_pb):
    for _service in _file.DESCRIPTOR.services_by_name.values():
        for _method in _service.methods:
            setattr(ScriptedGateway, _method.name, _scripted(_method.name))


@contextmanager
def scripted_gateway() -> Generator[ScriptedGateway]:
    """Serves on a free port of 127.0.0.1; `address` names it."""
    gateway = ScriptedGateway()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    add_AdapterRegistryServiceServicer_to_server(gateway, server)
    add_DataPlaneAdminServiceServicer_to_server(gateway, server)
    add_FleetServiceServicer_to_server(gateway, server)
    add_InferenceServiceServicer_to_server(gateway, server)
    add_TenantServiceServicer_to_server(gateway, server)
    gateway.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield gateway
    finally:
        server.stop(None).wait()


def generation(
    texts: Sequence[str], *, held_back: str = "", error: ChoraleError | None = None
) -> list[Any]:
    """One stream's events, a token for each text; an `error` ends it in place of `finished`."""
    pb = inference_pb
    accepted = pb.Accepted(
        request_id="r1",
        model="pirate",
        adapter_version=3,
        adapter_digest="d" * 64,
        data_plane_id="data-plane-0",
        num_prompt_tokens=4,
        seed=7,
    )
    events: list[Any] = [pb.GenerateResponse(accepted=accepted)]
    for token_id, text in enumerate(texts):
        chunk = pb.TokenChunk(text=text, token_ids=[token_id])
        events.append(pb.GenerateResponse(tokens=chunk))
    if error is not None:
        return [*events, error]
    finished = pb.Finished(
        finish_reason=pb.FINISH_REASON_STOP,
        text=held_back,
        stop_token_id=2,
        usage=pb.Usage(num_prompt_tokens=4, num_completion_tokens=len(texts), num_cached_tokens=1),
        timings=pb.Timings(queue_s=0.5, time_to_first_token_s=1.0, total_s=2.0),
    )
    return [*events, pb.GenerateResponse(finished=finished)]


def adapter(name: str, *, versions: int = 1, alias: str = "") -> registry_pb.Adapter:
    """An adapter whose newest version is current."""
    made = [
        registry_pb.AdapterVersion(
            version=number,
            digest=f"{number}" * 64,
            source=f"file:///adapters/{name}",
            base_model="chorale-demo",
            rank=8 * number,
            size_bytes=4096,
            target_modules=["self_attn.q_proj", "self_attn.v_proj"],
            labels={"team": "blue"},
        )
        for number in range(versions, 0, -1)
    ]
    for version in made:
        version.created_at.FromJsonString("2026-01-02T03:04:05Z")
    aliases = [registry_pb.Alias(name=alias, adapter=name)] if alias else []
    return registry_pb.Adapter(name=name, current_version=versions, versions=made, aliases=aliases)
