"""One generation: admitted, streamed from a data plane, and resumed elsewhere when that is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from chorale import source_token
from chorale.errors import (
    CancelledError,
    ChoraleError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from chorale.prefixes import prompt_prefixes
from chorale.prompt_size import prompt_size
from chorale.relay import MAX_REQUEST_BYTES
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.links import RelayUnknownError
from controlplane.gateway.means import Means
from controlplane.gateway.objective import FirstToken, Objective
from controlplane.gateway.recovery import Recovery
from controlplane.gateway.upstream import (
    Metadata,
    deadline_exceeded,
    for_data_plane,
    is_lost,
    is_typed,
    typed,
    unreachable,
)

T = TypeVar("T")
_MAX_KEY_CHARS = 256  # as AdmitRequest.routing_key has it
_CONTROL_PLANE = "CONTROL_PLANE", "the control plane"


class Generation:
    """One request on its way over one data plane after the other."""

    def __init__(
        self,
        means: Means,
        request: pb.GenerateRequest,
        timeout_s: float | None,
        metadata: Metadata,
    ) -> None:
        self._means = means
        self._request = pb.GenerateRequest()
        self._request.CopyFrom(request)
        if not request.request_id:
            self._request.request_id = uuid.uuid4().hex
        self._routing_key = request.routing_key or self._request.request_id[:_MAX_KEY_CHARS]
        self._request.ClearField("routing_key")  # whom it is for is no data plane's business
        self._metadata = metadata
        self._deadline = None if timeout_s is None else _now() + timeout_s
        self._objective = Objective(self._request, means.ways, _now())
        scores_prompt = self._request.sampling.HasField("prompt_logprobs")
        # All of a prompt that is scored is computed, wherever its beginning was.
        self._prefixes = None if scores_prompt else prompt_prefixes(self._request)
        self._recovery = Recovery(means.limits)
        self._place: admission_pb.AdmitResponse | None = None  # the first one: what was promised
        self._untaken: admission_pb.AdmitResponse | None = None  # whose ticket nobody has taken yet
        self._was_accepted = False
        self._num_given = len(request.generated_token_ids)  # by a caller that goes on by itself
        self._num_scored = 0  # tokens of the prompt that were delivered with log-probabilities
        self._call: Any = None
        self._end: ChoraleError | None = None
        self._ended = asyncio.Event()

    def end(self, error: ChoraleError | None = None) -> None:
        """Ends it now: `events` raises `error`, by default CANCELLED. Ending twice is no error."""
        if self._end is None:
            self._end = error or CancelledError("CANCELLED", "the generation was cancelled")
            self._ended.set()
            if self._call is not None:
                self._call.cancel()

    async def events(self) -> AsyncGenerator[pb.GenerateResponse]:
        """The stream as the contract of InferenceService has it. Raises: ChoraleError."""
        with self._means.metrics.request() as watch, self._means.gate.place():
            self._means.unused.check()
            self._means.running.add(self)
            try:
                async with aclosing(self._all_streams()) as responses:
                    async for response in responses:
                        yield watch.note(response)
            finally:
                self._means.running.discard(self)
                if self._untaken is not None:
                    self._means.unused.add(self._untaken)

    async def _all_streams(self) -> AsyncGenerator[pb.GenerateResponse]:
        place: admission_pb.AdmitResponse | None = None
        while True:
            place = place or await self._admit()
            request = self._request_to(place)
            try:
                async with aclosing(self._one_stream(place, request)) as responses:
                    async for response in responses:
                        yield response
                return
            except RelayUnknownError:
                continue  # its ticket is still good for Generate
            except _LostError as lost:
                self._means.metrics.num_lost_streams += lost.was_accepted
                go_on = self._recovery.lost(place.data_plane_id, was_accepted=lost.was_accepted)
                if not go_on:
                    raise lost.error from lost
            except UnauthenticatedError as error:
                is_ticket = error.reason.startswith("TICKET_")
                if not (is_ticket and self._recovery.ticket_refused()):
                    raise
            except ResourceExhaustedError as error:
                # A running request that has to move is not to be lost to a full data plane.
                if not self._recovery.under_way:
                    raise
                await self._wait_for_place(error)
            place = None

    async def _admit(self) -> admission_pb.AdmitResponse:
        outage = self._means.outage
        while True:
            request, asked_s = self._admit_request(), _now()
            try:
                place = self._untaken = await self._ask_for_place(request)
            except (UnavailableError, ResourceExhaustedError) as error:
                pause_s = outage.pause_s(error, asked_s, _now())
                if pause_s is not None:
                    with outage.waiting():
                        await self._pause(pause_s, error)
                elif self._recovery.under_way:
                    await self._wait_for_place(error)
                else:
                    raise
            else:
                outage.over()
                self._means.ways.admission.note(_now() - asked_s, _now())
                return self._as_promised(place)

    async def _ask_for_place(self, request: admission_pb.AdmitRequest) -> Any:
        """Once more where no answer came: of several control planes another may have one."""
        try:
            return await self._admission(request)
        except UnavailableError as error:
            if error.reason != unreachable(*_CONTROL_PLANE).reason:
                raise
        return await self._admission(request)

    def _admit_request(self) -> admission_pb.AdmitRequest:
        model, first = self._request.model, self._place
        if first is not None:
            # Pinned: the name may have been promoted to another version in the meantime.
            version = first.adapter_version
            model = f"{first.model}@{version}" if version else first.model
        request = admission_pb.AdmitRequest(
            model=model,
            tenant=self._request.tenant,
            excluded_data_plane_ids=self._recovery.excluded,
            routing_key=self._routing_key,
            prompt_size=prompt_size(self._request),
            priority=self._request.priority,
            continued_ticket=b"" if first is None else first.ticket,
            prompt_prefixes=self._prefixes,
        )
        if self._request.sampling.HasField("max_tokens"):
            request.max_tokens = self._request.sampling.max_tokens
        self._objective.put_into(request, _now(), has_begun=self._has_begun)
        return request

    @property
    def _has_begun(self) -> bool:
        """Whether the first token was delivered."""
        return bool(self._request.generated_token_ids)

    def _as_promised(self, place: admission_pb.AdmitResponse) -> admission_pb.AdmitResponse:
        if self._place is None:
            self._place = place
        elif place.adapter_digest != self._place.adapter_digest:
            raise FailedPreconditionError(
                "ADAPTER_CHANGED",
                f"adapter {place.model!r} is no longer what the request began with; start it anew",
                metadata={"model": place.model},
            )
        return place

    async def _wait_for_place(self, error: ChoraleError) -> None:
        delay = self._recovery.no_place(error.retry_after_s)
        if delay is None:
            raise error
        await self._pause(delay, error)

    async def _pause(self, delay: float, error: ChoraleError) -> None:
        """Raises: `error` where the deadline leaves no time; what `end` was told."""
        remaining = self._time_remaining()
        if remaining is not None and delay >= remaining:
            raise error
        try:
            async with asyncio.timeout(delay):
                await self._ended.wait()
        except TimeoutError:
            return
        self._raise_if_ended()

    def _request_to(self, place: admission_pb.AdmitResponse) -> pb.GenerateRequest:
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.ticket = place.ticket
        num_generated = len(self._request.generated_token_ids)
        if num_generated > self._num_given:  # all of the prompt came before
            request.sampling.ClearField("prompt_logprobs")
        self._objective.put_into(request, _now(), has_begun=self._has_begun)
        return request

    async def _one_stream(
        self, place: admission_pb.AdmitResponse, request: pb.GenerateRequest
    ) -> AsyncGenerator[pb.GenerateResponse]:
        accepted_here, num_scored = False, 0
        first = FirstToken(self._means.ways.stream, _now())
        async with self._means.channels.lease(place.endpoint) as channel:
            self._raise_if_ended()
            self._call = call = self._started(channel, request)
            try:
                async for response in self._responses(call, place):
                    kind = response.WhichOneof("event")
                    if kind == "accepted":
                        accepted_here = True
                        self._untaken = None
                        if not self._accept(response.accepted):
                            continue
                    elif kind == "tokens":
                        first.came(_now())
                        self._request.generated_token_ids.extend(response.tokens.token_ids)
                        if prompt := response.tokens.prompt_logprobs:
                            num_delivered = self._num_scored - num_scored
                            num_scored += len(prompt)
                            self._num_scored = max(self._num_scored, num_scored)
                            del prompt[:num_delivered]
                            if not prompt:  # of a stream that was lost
                                continue
                    elif kind == "finished":
                        first.ended(response.finished.timings, _now())
                    yield response
                    if kind == "finished":
                        return
                raise _LostError(_broken_off(place))
            except _LostError as lost:
                lost.was_accepted = accepted_here
                raise
            finally:
                self._call = None
                call.cancel()

    def _started(self, channel: grpc.aio.Channel, request: pb.GenerateRequest) -> Any:
        timeout_s = self._checked_time_remaining()
        metadata = for_data_plane(self._metadata)
        # Metadata belongs to a call, so what has some gets a call of its own.
        is_alone = bool(metadata) or request.ByteSize() > MAX_REQUEST_BYTES
        link = None if is_alone else self._means.links.over(channel)
        if link is not None:
            return link.generate(request, timeout_s)
        stub: Any = InferenceServiceStub(channel)
        return stub.Generate(request, timeout=timeout_s, metadata=metadata)

    async def _responses(
        self, call: Any, place: admission_pb.AdmitResponse
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """What the call answers, with its failures translated."""
        responses = aiter(call)
        while True:
            try:
                response = await anext(responses, None)
            except asyncio.CancelledError:
                self._raise_if_interrupted()
                raise
            except grpc.aio.AioRpcError as error:
                name = f"data plane {place.data_plane_id!r}"
                known = typed(error, role="DATA_PLANE", name=name)
                raise (_LostError(known) if is_lost(error) else known) from error
            except UnavailableError as error:  # typed, of a relayed generation
                raise _LostError(error) from error
            if response is None:
                return
            yield response

    def _accept(self, accepted: pb.Accepted) -> bool:
        """Notes what a resumed stream needs. Returns whether it is the request's first."""
        self._recovery.accepted()
        # Drawn by the first data plane; every later one must draw the same tokens.
        self._request.sampling.seed = accepted.seed
        first = not self._was_accepted
        self._was_accepted = True
        return first

    async def _admission(self, request: admission_pb.AdmitRequest) -> Any:
        self._raise_if_ended()
        remaining = self._checked_time_remaining()
        admit = self._means.admission.Admit
        # It has its own time, and is not cancelled with what waits for it, as when the request's
        # deadline passes: what was admitted is to be known, to be given back.
        call = admit(request, timeout=self._longest_answer_s, metadata=self._metadata)
        answer = asyncio.ensure_future(_answer_of(call))
        self._call = waiting = asyncio.shield(answer)
        try:
            async with asyncio.timeout(remaining):
                return await self._interruptible(waiting)
        except TimeoutError as error:
            raise deadline_exceeded() from error
        except grpc.aio.AioRpcError as error:
            role, name = _CONTROL_PLANE
            is_silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not is_typed(error)
            if is_silent:
                raise unreachable(role, name) from error
            raise typed(error, role=role, name=name) from error
        finally:
            self._call = None
            if waiting.cancelled() or not answer.done():
                self._means.unused.add_admission(answer)

    async def _interruptible(self, answer: Awaitable[T]) -> T:
        """Awaits `answer`, a part of the present call, that `end` can cut short."""
        try:
            return await answer
        except asyncio.CancelledError:
            self._raise_if_interrupted()
            raise

    @property
    def _longest_answer_s(self) -> float:
        limits = self._means.limits
        asks_source = source_token.KEY in dict(self._metadata)
        return limits.admit_s + (limits.source_check_s if asks_source else 0.0)

    def _raise_if_interrupted(self) -> None:
        """After CancelledError: whether it was `end` that cancelled the call."""
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise self._end

    def _time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - _now()

    def _checked_time_remaining(self) -> float | None:
        remaining = self._time_remaining()
        if remaining is not None and remaining <= 0:
            raise deadline_exceeded()
        return remaining


async def _answer_of(call: Any) -> Any:
    return await call


class _LostError(Exception):
    """The stream broke with `error`; the request can go on elsewhere."""

    def __init__(self, error: ChoraleError) -> None:
        super().__init__(str(error))
        self.error = error
        self.was_accepted = False


def _broken_off(place: admission_pb.AdmitResponse) -> UnavailableError:
    return UnavailableError(
        "STREAM_BROKEN_OFF",
        f"data plane {place.data_plane_id!r} ended the stream without `finished`; try again",
        metadata={"data_plane_id": place.data_plane_id},
        retry_after_s=1.0,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
