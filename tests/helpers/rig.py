"""A data plane's InferenceService over a fake engine, and a client to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from transformers import PreTrainedTokenizerFast

from chorale.request_metrics import RequestMetrics
from chorale.server import Server, start_server
from chorale.status import from_rpc_error
from chorale.v1 import fleet_pb2, inference_pb2, inference_pb2_grpc, relay_pb2_grpc
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.gate import TicketGate
from dataplane.rpc.inference import SERVICE_NAME, InferenceService
from dataplane.rpc.lifecycle import vocabulary_of
from dataplane.rpc.relay import SERVICE_NAME as RELAY_NAME
from dataplane.rpc.relay import RelayService
from dataplane.text.tokenizer import Tokenizer
from tests.helpers.fake_control_plane import KEY, KEY_ID, eventually, make_ticket
from tests.helpers.tokenizers import CHAT_TEMPLATE, byte_level

BACKEND = byte_level()
HF_TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=BACKEND, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
)
TOKENIZER = Tokenizer(HF_TOKENIZER)


def ids_of(text: str) -> list[int]:
    return BACKEND.encode(text, add_special_tokens=False).ids


@dataclass
class EngineLog:
    """What a fake engine has received, and the losses that its client told of."""

    path: Path
    losses: list[str] = field(default_factory=list[str])

    def of(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = [line for line in self.path.read_text().split("\n")[:-1] if line]
        return [message for line in lines if (message := json.loads(line))["type"] == kind]

    async def wait_for(self, kind: str, number: int = 1) -> list[dict[str, Any]]:
        await eventually(lambda: len(self.of(kind)) >= number)
        return self.of(kind)


@dataclass
class Rig:
    engine: EngineClient
    log: EngineLog
    service: InferenceService
    server: Server
    stub: Any
    metrics: RequestMetrics
    relay: RelayService
    channel: grpc.aio.Channel

    def call(self, *, timeout: float | None = None, **fields: Any) -> Any:
        """Starts Generate with a good ticket and the prompt "hello" unless told otherwise."""
        fields.setdefault("ticket", make_ticket())
        if not {"prompt", "prompt_token_ids", "chat"} & fields.keys():
            fields["prompt"] = "hello"
        sampling = fields.pop("sampling", {})
        request = inference_pb2.GenerateRequest(
            **{name: value for name, value in fields.items() if value is not None},
            sampling=inference_pb2.SamplingParameters(**sampling),
        )
        return self.stub.Generate(request, timeout=timeout)

    async def tokenize(self, timeout: float | None = None, **fields: Any) -> list[Any]:
        """Raises: ChoraleError."""
        request = inference_pb2.TokenizeRequest(**fields)
        try:
            return list((await self.stub.Tokenize(request, timeout=timeout)).tokens)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def generate(self, **fields: Any) -> list[inference_pb2.GenerateResponse]:
        """All events. Raises: ChoraleError."""
        events: list[inference_pb2.GenerateResponse] = []
        try:
            async for event in self.call(**fields):
                events.append(event)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return events


def text_of(events: list[inference_pb2.GenerateResponse]) -> str:
    return "".join(event.tokens.text for event in events) + events[-1].finished.text


def tokens_of(events: list[inference_pb2.GenerateResponse]) -> list[int]:
    return [token for event in events for token in event.tokens.token_ids]


@contextlib.asynccontextmanager
async def open_rig(
    engine: EngineClient,
    log: EngineLog,
    *,
    max_open: int,
    ttft_slo_s: float | None = None,
    max_unread_events: int = 4096,
    tokenizer: Tokenizer = TOKENIZER,
) -> AsyncIterator[Rig]:
    ready = await engine.wait_ready()
    gate = TicketGate("dp-1", ready.model_name)
    gate.set_keys([fleet_pb2.TicketKey(key_id=KEY_ID, key=KEY)])
    metrics = RequestMetrics("chorale_data_plane")
    vocabulary = vocabulary_of(ready, tokenizer)
    await engine.teach(vocabulary)
    service = InferenceService(
        engine=lambda: engine,
        ready=ready,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        gate=gate,
        data_plane_id="dp-1",
        max_open=max_open,
        ttft_slo_s=ttft_slo_s,
        metrics=metrics,
    )
    relay = RelayService(service.events, max_unread_events=max_unread_events)
    server = await start_server(
        host="127.0.0.1",
        port=0,
        services=[
            (
                SERVICE_NAME,
                lambda to: inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, to),
            ),
            (
                RELAY_NAME,
                lambda to: relay_pb2_grpc.add_RelayServiceServicer_to_server(relay, to),
            ),
        ],
        error_table={},
    )
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            yield Rig(engine, log, service, server, stub, metrics, relay, channel)
        finally:
            await server.stop(0)
            service.close()
