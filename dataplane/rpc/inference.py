"""InferenceService of a data plane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc

from chorale.errors import (
    CancelledError,
    ChoraleError,
    ResourceExhaustedError,
    UnavailableError,
)
from chorale.prompt_size import prompt_size
from chorale.request_metrics import RequestMetrics
from chorale.v1 import admission_pb2, inference_pb2, inference_pb2_grpc
from dataplane import channel
from dataplane.rpc.constraints import Constraints
from dataplane.rpc.deadline import deadline_of, deadline_passed, within
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_stream import EngineStream
from dataplane.rpc.first_tokens import FirstTokens
from dataplane.rpc.foresight import Foresight
from dataplane.rpc.gate import TicketGate
from dataplane.rpc.generations import Generations
from dataplane.rpc.request import PreparedRequest, is_short, prepare
from dataplane.rpc.settlements import Settlements
from dataplane.rpc.text_ratio import TextRatio
from dataplane.rpc.tokenizing import Tokenizing

if TYPE_CHECKING:
    from dataplane.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SERVICE_NAME = "chorale.v1.InferenceService"
_NUM_TOKENIZER_THREADS = 2


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Streams completions from the engine.

    engine: gives the engine of the moment, which knows `vocabulary`. max_open: requests in all
    phases; one more is refused with RESOURCE_EXHAUSTED. ttft_slo_s: the objective of requests that
    name none; None: nothing. metrics: of all requests. Tells, besides, how many characters make a
    token of prompts, how true the tickets' expectations came, and what tenants were charged too
    much and what they run.
    """

    def __init__(
        self,
        *,
        engine: Callable[[], EngineClient],
        ready: channel.Ready,
        tokenizer: Tokenizer,
        vocabulary: channel.Vocabulary,
        gate: TicketGate,
        data_plane_id: str,
        max_open: int,
        metrics: RequestMetrics,
        ttft_slo_s: float | None = None,
    ) -> None:
        self._engine = engine
        self._prepare = partial(prepare, ready=ready, tokenizer=tokenizer)
        self.constraints = Constraints(vocabulary)
        self._gate = gate
        self._data_plane_id = data_plane_id
        self._max_open = max_open
        self._ttft_slo_s = ttft_slo_s
        self._metrics = metrics
        self.text_ratio = TextRatio()
        self.foresight = Foresight()
        self.first_tokens = FirstTokens()
        self.settlements = Settlements()
        self.generations = Generations()
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining: ChoraleError | None = None
        self._threads = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, "tokenize")
        self._tokenizing = Tokenizing(tokenizer, max_context_tokens=ready.max_context_tokens)

    @property
    def num_open(self) -> int:
        """Requests that hold a place, in whatever phase."""
        return self._num_open

    async def Generate(
        self,
        request: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        held = contextlib.ExitStack()
        # A cancelled call whose generator waits in a write hears of it late; this does not.
        cast("Any", context).add_done_callback(partial(_close, held))
        timeout_s = cast("float | None", context.time_remaining())
        async with contextlib.aclosing(self.events(request, timeout_s, held)) as events:
            async for event in events:
                yield event

    async def Tokenize(
        self,
        request: inference_pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> inference_pb2.TokenizeResponse:
        if self._draining is not None:
            raise self._draining
        timeout_s = cast("float | None", context.time_remaining())
        return await self._tokenizing.tokenize(request, deadline_of(timeout_s, time.monotonic()))

    async def events(
        self,
        request: inference_pb2.GenerateRequest,
        timeout_s: float | None,
        held: contextlib.ExitStack,
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """What Generate streams. timeout_s: what is left of the caller's time, None without a
        deadline. held: gets what the request holds, all of which its closing frees; it is closed at
        the end at the latest.

        Raises: ChoraleError.
        """
        arrival_s = time.monotonic()
        deadline_s = deadline_of(timeout_s, arrival_s)
        with held:
            watch = held.enter_context(self._metrics.request())
            held.enter_context(self._place())
            claims = self._gate.enter(request.ticket, tenant=request.tenant)
            held.enter_context(self.generations.running(claims))
            held.enter_context(_noting(self.constraints))
            invocation = claims.adapter_invocation_tokens
            prepared = await self._prepared(request, invocation, deadline_s)
            if prepared.grammar is not None:
                await self.constraints.check(prepared.grammar, deadline_s)
            self.text_ratio.note(prompt_size(request).num_characters, len(prepared.prompt))
            yield watch.note(
                inference_pb2.GenerateResponse(accepted=self._accepted(prepared, claims))
            )
            first_s = 0.0
            if not prepared.completion.ended:
                submitted_s = time.monotonic()
                outputs = self._submit(prepared, claims, arrival_s, deadline_s)
                held.enter_context(contextlib.closing(outputs))
                if deadline_s is not None:
                    # One timer for the request: one for each token would cost more than the token.
                    held.callback(_expire_at(deadline_s, outputs).cancel)
                async for chunk in _chunks(prepared, outputs):
                    if not first_s:
                        first_s = time.monotonic() - arrival_s
                        self._note_first(prepared, claims, arrival_s, submitted_s, first_s)
                    yield watch.note(inference_pb2.GenerateResponse(tokens=chunk))
            took_s = time.monotonic() - arrival_s
            finished = prepared.completion.finish(first_s, took_s)
            used_tokens = finished.usage.num_prompt_tokens + finished.usage.num_completion_tokens
            self.settlements.note(claims.tenant, claims.charged_tokens, used_tokens)
            yield watch.note(inference_pb2.GenerateResponse(finished=finished))

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Refuses new requests, gives open ones `grace_s` to finish, or until `hurry` is set, then
        ends them UNAVAILABLE."""
        self._draining = UnavailableError(
            "SHUTTING_DOWN", "the data plane is going away; continue elsewhere", retry_after_s=0.1
        )
        if self._num_open:
            log.info("%d requests have up to %g s to finish", self._num_open, grace_s)
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._idle, hurry)]
        try:
            await asyncio.wait(waiting, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if self._num_open:
            log.info("ending %d requests that did not finish", self._num_open)
        self._engine().end_all(self._draining)

    def close(self) -> None:
        """Lets the threads go; jobs that have not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.constraints.close()
        self._tokenizing.close()

    async def _prepared(
        self,
        request: inference_pb2.GenerateRequest,
        invocation: Sequence[int],
        deadline_s: float | None,
    ) -> PreparedRequest:
        if is_short(request):
            return self._prepare(request, invocation)
        loop = asyncio.get_running_loop()
        async with within(deadline_s):
            return await loop.run_in_executor(self._threads, self._prepare, request, invocation)

    def _submit(
        self,
        prepared: PreparedRequest,
        claims: admission_pb2.TicketClaims,
        arrival_s: float,
        deadline_s: float | None,
    ) -> EngineStream:
        adapter = None
        if claims.adapter_digest:
            adapter = channel.Adapter(
                digest=claims.adapter_digest,
                source=claims.adapter_source,
                name=claims.adapter_name,
                token=claims.adapter_source_token,
                invocation_tokens=tuple(claims.adapter_invocation_tokens),
            )
        ttft_slo_s = self._ttft_slo_s if prepared.ttft_slo_s is None else prepared.ttft_slo_s
        first_token_by_s = None
        if ttft_slo_s is not None:
            way_out_s = self.first_tokens.way_out_s(time.monotonic())
            first_token_by_s = arrival_s + ttft_slo_s - prepared.ttft_path_s - way_out_s
        return self._engine().submit(
            prompt=prepared.prompt,
            generated=prepared.generated,
            sampling=prepared.sampling,
            adapter=adapter,
            active_from=prepared.active_from,
            tenant=claims.tenant or "default",
            arrival_s=arrival_s,
            deadline_s=deadline_s,
            first_token_by_s=first_token_by_s,
            priority=min(prepared.priority, claims.max_priority),
            cache_scope=_cache_scope(claims, prepared.cache_salt),
        )

    def _note_first(
        self,
        prepared: PreparedRequest,
        claims: admission_pb2.TicketClaims,
        arrival_s: float,
        submitted_s: float,
        first_s: float,
    ) -> None:
        if claims.expected_ttft_s:
            self.foresight.note(claims.expected_ttft_s, first_s)
        made_s = prepared.completion.made_first_s
        if made_s is not None:
            self.first_tokens.note(
                arrival_s=arrival_s,
                submitted_s=submitted_s,
                made_s=arrival_s + made_s,
                sent_s=arrival_s + first_s,
            )

    @contextlib.contextmanager
    def _place(self) -> Generator[None]:
        if self._draining is not None:
            raise self._draining
        self._engine().check()  # before `accepted`, which would promise what is not there
        if self._num_open >= self._max_open:
            raise ResourceExhaustedError(
                "TOO_MANY_REQUESTS",
                f"this data plane has {self._num_open} open requests, the most it takes; "
                "try again later, or call Admit for another one",
                metadata={"max_open_requests": str(self._max_open)},
                retry_after_s=1.0,
            )
        self._num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._idle.set()

    def _accepted(
        self, prepared: PreparedRequest, claims: admission_pb2.TicketClaims
    ) -> inference_pb2.Accepted:
        return inference_pb2.Accepted(
            request_id=prepared.request_id,
            model=claims.adapter_name or claims.base_model,
            adapter_version=claims.adapter_version,
            adapter_digest=claims.adapter_digest,
            data_plane_id=self._data_plane_id,
            num_prompt_tokens=len(prepared.prompt),
            seed=prepared.sampling.seed,
            prompt_token_ids=prepared.prompt if prepared.return_prompt else (),
            tool_call_format=prepared.tool_call_format,
        )


def _cache_scope(claims: admission_pb2.TicketClaims, salt: str) -> str:
    """Of requests that are to find each other's cached blocks."""
    tenant = claims.tenant if claims.tenant_prefixes else ""
    # The length goes first, so that no salt can imitate a tenant.
    return f"{len(tenant)}:{tenant}{salt}" if tenant or salt else ""


async def _chunks(
    prepared: PreparedRequest, outputs: EngineStream
) -> AsyncIterator[inference_pb2.TokenChunk]:
    """Chunks until the completion has ended; each holds all that the engine made meanwhile."""
    completion = prepared.completion
    while not completion.ended:
        batch = await outputs.next_batch()
        if batch is None:  # closed, as the call is over: nobody is there to hear it
            raise CancelledError("CANCELLED", "the call was cancelled")
        for output in batch:
            completion.add(output)
        if completion.ended:
            outputs.close()  # a stop string was met here, of which the engine knows nothing
        while (chunk := completion.take_chunk()) is not None:
            yield chunk


@contextlib.contextmanager
def _noting(constraints: Constraints) -> Generator[None]:
    try:
        yield
    except ChoraleError as error:
        constraints.note_failure(error)
        raise


def _close(held: contextlib.ExitStack, context: object) -> None:
    held.close()


def _expire_at(deadline_s: float, outputs: EngineStream) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_at(deadline_s, outputs.expire, deadline_passed())
