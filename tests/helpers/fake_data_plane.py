"""A data plane that does as it is told, over real gRPC on 127.0.0.1."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any

from chorale.server import Server, start_server
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from chorale.v1.relay_pb2_grpc import add_RelayServiceServicer_to_server
from dataplane.rpc.relay import RelayService

if TYPE_CHECKING:
    from tests.helpers.fake_fleet import FakeFleet

DRAWN_SEED = 4242


def token_at(seed: int, position: int) -> int:
    """The token that every fake data plane draws."""
    return 100 + (seed * 31 + position * 7) % 900


def text_of(token_ids: list[int]) -> str:
    return "".join(f" é{token_id}" for token_id in token_ids)


def story(seed: int, num_tokens: int) -> list[int]:
    """The first tokens of a request with `seed`."""
    return [token_at(seed, position) for position in range(num_tokens)]


Hook = Callable[["FakeDataPlane", int], Any]


class FakeDataPlane(InferenceServiceServicer):
    """Generates `story`; its text lags one token behind, as a detokenizer's may.

    before_token: awaited with the number of tokens generated so far, before each one; may raise, or
    stop the server. error: raised before `accepted`. relays: whether it has RelayService.
    """

    def __init__(self, data_plane_id: str, fleet: FakeFleet, *, relays: bool = True) -> None:
        self.data_plane_id = data_plane_id
        self.fleet = fleet
        self.server: Server | None = None
        self.endpoint = ""
        self.requests: list[pb.GenerateRequest] = []
        self.texts: list[pb.TokenizeRequest] = []
        self.tokenize_delay_s = 0.0
        self.metadata: list[dict[str, Any]] = []
        self.time_remaining: list[float | None] = []
        self.before_token: Hook | None = None
        self.error: Exception | None = None
        self.errors: list[Exception] = []
        self.delay_s = 0.0
        self.first_token_s = 0.5  # what it says that its first token took
        self.pieces: list[str] | None = None  # of an answer, in place of a story; it ends by itself
        self.tool_call_format = "hermes"
        self.running = 0
        self.relays = relays
        self.num_calls = 0  # of Generate itself
        self.num_relays = 0
        self.num_said = 0  # responses to Generate
        self.num_heard = 0  # of them, by a gateway of `running_gateway`
        self.ended = asyncio.Event()

    async def start(self, port: int = 0) -> None:
        def add(server: Any) -> None:
            add_InferenceServiceServicer_to_server(self, server)

        def add_relay(server: Any) -> None:
            add_RelayServiceServicer_to_server(_CountingRelay(self), server)

        services: list[Any] = [("chorale.v1.InferenceService", add)]
        if self.relays:
            services.append(("chorale.v1.RelayService", add_relay))
        self.server = await start_server(
            host="127.0.0.1",
            port=port,
            services=services,
            error_table={},
            fleet_tls=self.fleet.tls,
        )
        self.endpoint = self.server.address

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        self.num_calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        async with aclosing(self._events(request, context.time_remaining())) as events:
            async for event in events:
                yield event

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """A token for each word, numbered."""
        self.texts.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        await asyncio.sleep(self.tokenize_delay_s)
        if self.error is not None:
            raise self.error
        spans = [match.span() for match in re.finditer(r"\S+", request.text)]
        if request.add_special_tokens or not request.HasField("add_special_tokens"):
            spans.insert(0, (0, 0))
        return pb.TokenizeResponse(
            tokens=[
                pb.TokenSpan(
                    token_id=index, piece=request.text[start:stop] or "<s>", start=start, stop=stop
                )
                for index, (start, stop) in enumerate(spans)
            ]
        )

    def relayed(
        self, request: pb.GenerateRequest, timeout_s: float | None, held: ExitStack
    ) -> AsyncGenerator[pb.GenerateResponse]:
        self.metadata.append({})
        return self._events(request, timeout_s)

    async def _events(
        self, request: pb.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[pb.GenerateResponse]:
        self.requests.append(request)
        self.time_remaining.append(timeout_s)
        if self.errors:
            raise self.errors.pop(0)
        if self.error is not None:
            raise self.error
        self.fleet.use_ticket(request.ticket, self.data_plane_id)
        self.running += 1
        try:
            async for response in self._stream(request):
                self.num_said += 1
                yield response
        finally:
            self.running -= 1
            self.ended.set()

    async def _stream(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        sampling = request.sampling
        seed = sampling.seed if sampling.HasField("seed") else DRAWN_SEED
        done = list(request.generated_token_ids)
        num_prompt_tokens = max(1, len(request.prompt.split()) + len(request.prompt_token_ids.ids))
        if request.HasField("chat"):
            num_prompt_tokens = sum(len(m.content.split()) + 1 for m in request.chat.messages)
        claims = self.fleet.tickets[request.ticket]
        yield pb.GenerateResponse(
            accepted=pb.Accepted(
                request_id=request.request_id,
                model=claims.model,
                adapter_version=claims.adapter_version,
                adapter_digest=claims.adapter_digest,
                data_plane_id=self.data_plane_id,
                num_prompt_tokens=num_prompt_tokens,
                seed=seed,
                tool_call_format=self.tool_call_format if request.chat.tools else "",
            )
        )
        if self.pieces is not None:
            for position, text in enumerate(self.pieces):
                chunk = pb.TokenChunk(text=text, token_ids=[position])
                yield pb.GenerateResponse(tokens=chunk)
            reason = pb.FINISH_REASON_STOP
            if sampling.HasField("max_tokens") and sampling.max_tokens <= len(self.pieces):
                reason = pb.FINISH_REASON_LENGTH
            yield pb.GenerateResponse(finished=pb.Finished(finish_reason=reason))
            return
        async for chunk in self._scored_prompt(request):
            yield pb.GenerateResponse(tokens=chunk)
        max_tokens = sampling.max_tokens if sampling.HasField("max_tokens") else 20
        while len(done) < max_tokens:
            if self.before_token is not None:
                await self.before_token(self, len(done))
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            token_id = token_at(seed, len(done))
            chunk = pb.TokenChunk(text=text_of(done[-1:]), token_ids=[token_id])
            if sampling.HasField("logprobs"):
                chunk.logprobs.append(_logprobs(token_id, sampling.logprobs))
            done.append(token_id)
            yield pb.GenerateResponse(tokens=chunk)
        yield pb.GenerateResponse(
            finished=pb.Finished(
                finish_reason=pb.FINISH_REASON_LENGTH,
                text=text_of(done[-1:]),
                usage=pb.Usage(
                    num_prompt_tokens=num_prompt_tokens,
                    num_completion_tokens=len(done),
                    num_cached_tokens=num_prompt_tokens - 1,
                ),
                timings=pb.Timings(
                    queue_s=0.25, time_to_first_token_s=self.first_token_s, total_s=1.0
                ),
            )
        )

    async def _scored_prompt(self, request: pb.GenerateRequest) -> AsyncIterator[pb.TokenChunk]:
        """A special token first, two at a time. For `before_token` they are tokens -n to -1."""
        if not request.sampling.HasField("prompt_logprobs"):
            return
        words = request.prompt.split() or [f"#{each}" for each in request.prompt_token_ids.ids]
        texts = ["<s>", words[0], *(f" {word}" for word in words[1:])]
        for begin in range(0, len(texts), 2):
            if self.before_token is not None:
                await self.before_token(self, begin - len(texts))
            chunk = pb.TokenChunk()
            for at in range(begin, min(begin + 2, len(texts))):
                position = chunk.prompt_logprobs.add(text_offset=len("".join(texts[1:at])))
                position.chosen.CopyFrom(
                    pb.TokenLogprob(token_id=at, logprob=-0.25 * at, text=texts[at])
                )
                for other in range(request.sampling.prompt_logprobs if at else 0):
                    position.top.add(token_id=90 + other, logprob=-0.125, text=f"t{other}")
            yield chunk

    async def kill(self) -> None:
        """Stops at once, in the middle of everything."""
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop(0)


class _CountingRelay(RelayService):
    def __init__(self, plane: FakeDataPlane) -> None:
        super().__init__(plane.relayed)
        self._plane = plane

    async def Relay(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self._plane.num_relays += 1
        async for response in super().Relay(requests, context):
            yield response


def _logprobs(token_id: int, num_top: int) -> pb.TokenLogprobs:
    def candidate(offset: int) -> pb.TokenLogprob:
        logprob = float("-inf") if offset == 2 else -0.5 - offset
        return pb.TokenLogprob(
            token_id=token_id + offset, logprob=logprob, text=text_of([token_id + offset])
        )

    return pb.TokenLogprobs(
        chosen=candidate(0), top=[candidate(offset) for offset in range(num_top)]
    )
