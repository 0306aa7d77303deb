"""From a request's choices to its answer, whole or streamed: what OpenAI's endpoints share."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from chorale.objective import set_ttft_slo
from chorale.source_token import KEY as SOURCE_TOKEN_KEY
from chorale.source_token import source_token_metadata
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.generation import Generation
from controlplane.gateway.http.choices import Choice, Choices
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.json_response import json_response
from controlplane.gateway.http.schema import GenerationBody, SampledBody
from controlplane.gateway.http.sse import EventStream
from controlplane.gateway.relay import Relay
from controlplane.gateway.upstream import Metadata

_TRACING = ("traceparent", "tracestate", "baggage")
# Of all of them, as W3C has it for baggage. With much more, servers behind would refuse the call.
_MAX_TRACING_CHARACTERS = 8192
_TENANT_HEADER = "x-chorale-tenant"
_ROUTING_HEADER = "x-chorale-routing-key"
MODEL_HEADER = "x-chorale-model"
_MAX_KEY_CHARS = 256  # as GenerateRequest.routing_key has it


@dataclass(frozen=True, slots=True)
class Answer:
    """What every part of one answer repeats."""

    id: str
    object: str
    model: str
    system_fingerprint: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    def __call__(self, object_suffix: str = "", **rest: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object + object_suffix,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            **rest,
        }


class Format(Protocol):
    """How an endpoint shows choices."""

    id_prefix: str
    object: str
    chunk_suffix: str

    def accepted(self, choice: Choice) -> None:
        """A choice has been accepted. Raises: ChoraleError when it cannot be shown."""
        ...

    def hear(self, choice: Choice, response: pb.GenerateResponse) -> None:
        """An event of a choice that is to be shown whole."""
        ...

    def beside(self, choice: Choice) -> dict[str, Any]:
        """What the answer has beside its choices, as the first of them tells."""
        ...

    def first(self, choice: Choice) -> dict[str, Any] | None:
        """A choice's chunk before its tokens, or None."""
        ...

    def tokens(self, choice: Choice, chunk: pb.TokenChunk) -> dict[str, Any] | None:
        """A choice's chunk of new tokens, or None when they have nothing to show yet."""
        ...

    def last(self, choice: Choice, finished: pb.Finished) -> dict[str, Any]:
        """A choice's last chunk."""
        ...

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A choice that is complete."""
        ...


class Serving:
    """Runs parsed requests over a relay."""

    def __init__(self, relay: Relay, timeout_s: float) -> None:
        self._relay = relay
        self._timeout_s = timeout_s

    async def answer(
        self,
        request: Request,
        body: GenerationBody,
        shape: Format,
        generations: Sequence[tuple[int, str, pb.GenerateRequest]],
    ) -> Response:
        """The response for `generations`: (prompt's index, echoed text, request) for each choice.

        Raises: ChoraleError before the first byte; ApiError 499 when the client went away.
        """
        answer_id = f"{shape.id_prefix}-{uuid.uuid4().hex}"
        for _, _, generate in generations:
            generate.return_prompt_token_ids = bool(body.return_token_ids)
        choices = self.choices(
            request, body, answer_id, generations, is_prompt_only=body.max_tokens == 0
        )
        headers = {"x-request-id": answer_id}
        try:
            await while_connected(request.receive, choices.start())
            for choice in choices.choices:
                shape.accepted(choice)
            served = served_model(choices.choices[0])
            headers[MODEL_HEADER] = served
            # OpenAI's field for "which configuration was it".
            fingerprint = served if "@" in served else None
            model = body.model or served.partition("@")[0]
            answer = Answer(answer_id, shape.object, model, fingerprint)
            if body.stream:
                chunks = _chunks(choices, answer, shape, body.wants_usage_chunk)
                return EventStream(chunks, choices.close, headers)
            await while_connected(request.receive, collect(choices, shape.hear))
        except BaseException:
            await choices.close()
            raise
        shown = [shape.whole(choice) for choice in choices.choices]
        whole = answer(
            choices=shown,
            usage=_usage(choices.choices),
            **shape.beside(choices.choices[0]),
        )
        return json_response(whole, headers=headers)

    def choices(
        self,
        request: Request,
        body: SampledBody,
        answer_id: str,
        generations: Sequence[tuple[int, str, pb.GenerateRequest]],
        *,
        is_prompt_only: bool = False,
    ) -> Choices:
        """Of `generations`, as `answer` has them; they run when they are started."""
        choices: list[Choice] = []
        for index, (prompt, echo, generate) in enumerate(generations):
            generate.request_id = f"{answer_id}-{index}"
            generate.model = body.model or ""
            generate.cache_salt = body.cache_salt or ""
            # Where it is for nobody: of one answer all choices have one version.
            generate.routing_key = _routing_key(body.whom_for or answer_id)
            if body.ttft_slo is not None:
                set_ttft_slo(generate, body.ttft_slo)
            generation = self.start(request, generate)
            choices.append(Choice(index, prompt, generation, echo, is_prompt_only))
        return Choices(choices)

    def start(
        self, request: Request, generate: pb.GenerateRequest, source_token: str = ""
    ) -> Generation:
        """`generate` for the tenant and the routing key that the HTTP request's headers name,
        within its deadline.

        source_token: opens the adapter's source when that is private; empty: the header's.
        Raises: InvalidArgumentError for the token.
        """
        generate.tenant = request.headers.get(_TENANT_HEADER, "")
        if key := request.headers.get(_ROUTING_HEADER, ""):
            generate.routing_key = _routing_key(key)
        token = source_token or request.headers.get(SOURCE_TOKEN_KEY, "")
        metadata = (*tracing_metadata(request.headers), *source_token_metadata(token))
        return self._relay.start(generate, timeout_s=self._timeout_s, metadata=metadata)


async def collect(
    choices: Choices, hear: Callable[[Choice, pb.GenerateResponse], None] | None = None
) -> None:
    """Runs all choices to their ends. hear: called with each event."""
    async with aclosing(choices.events()) as events:
        async for choice, response in events:
            choice.add(response)
            if hear is not None:
                hear(choice, response)


async def _chunks(
    choices: Choices, answer: Answer, shape: Format, wants_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    no_usage: dict[str, Any] = {"usage": None} if wants_usage else {}

    def chunk(shown: dict[str, Any], **beside: Any) -> dict[str, Any]:
        return answer(shape.chunk_suffix, choices=[shown], **beside, **no_usage)

    for choice in choices.choices:
        if first := shape.first(choice):
            yield chunk(first, **shape.beside(choice))
    async with aclosing(choices.events()) as events:
        async for choice, response in events:
            if response.HasField("tokens"):
                if shown := shape.tokens(choice, response.tokens):
                    yield chunk(shown)
            elif response.HasField("finished"):
                yield chunk(shape.last(choice, response.finished))
    if wants_usage:
        yield answer(shape.chunk_suffix, choices=[], usage=_usage(choices.choices))


def _usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens counted: each prompt once, however many choices continue it. Of its tokens, those are
    cached that none of its choices had to compute."""
    prompts = {choice.prompt: choice.end.usage.num_prompt_tokens for choice in choices}
    cached = dict(prompts)
    for choice in choices:
        cached[choice.prompt] = min(cached[choice.prompt], choice.end.usage.num_cached_tokens)
    num_prompt_tokens = sum(prompts.values())
    num_completion_tokens = sum(choice.num_completion_tokens for choice in choices)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
    }


def finish_reason(finished: pb.Finished) -> str:
    """OpenAI's word for it."""
    return "length" if finished.finish_reason == pb.FINISH_REASON_LENGTH else "stop"


def served_model(choice: Choice) -> str:
    """`name@version`, or the base model's name. The choice has been accepted."""
    accepted = choice.accepted
    if accepted is None:
        return ""
    version = accepted.adapter_version
    return f"{accepted.model}@{version}" if version else accepted.model


def _routing_key(given: str) -> str:
    return given if len(given) <= _MAX_KEY_CHARS else hashlib.sha256(given.encode()).hexdigest()


def tracing_metadata(headers: Mapping[str, str]) -> Metadata:
    """The tracing headers that can go on; the others are left out, as they are no part of what was
    asked."""
    going: list[tuple[str, str]] = []
    room = _MAX_TRACING_CHARACTERS
    for name in _TRACING:
        value = headers.get(name)
        if value is not None and _is_plain(value) and len(value) <= room:
            going.append((name, value))
            room -= len(value)
    return tuple(going)


def _is_plain(value: str) -> bool:
    """Whether gRPC metadata can carry it: HTTP headers may hold any byte."""
    return value.isascii() and value.isprintable()
