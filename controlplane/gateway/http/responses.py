"""POST /v1/responses: OpenAI's Responses API, without the part that keeps answers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from chorale.errors import ChoraleError
from chorale.tool_call_pieces import Content, Piece
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.body import Bodies
from controlplane.gateway.http.choices import Choice, Choices
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.failures import ApiError, api_error, quoted
from controlplane.gateway.http.json_response import json_response
from controlplane.gateway.http.logprobs import chat_logprobs
from controlplane.gateway.http.responses_output import Event, Output, new_id
from controlplane.gateway.http.responses_request import (
    Functions,
    ResponseBody,
    parse_response_body,
    response_request,
)
from controlplane.gateway.http.serving import MODEL_HEADER, Serving, collect, served_model
from controlplane.gateway.http.sse import EventStream
from controlplane.gateway.http.tools import AnswerCalls

# What the gateway's own names are here.
_PARAMS = {"messages": "input", "response_format": "text", "max_tokens": "max_output_tokens"}

# What a function is where the request says nothing of it.
_NO_FUNCTION = {"description": None, "parameters": None, "strict": False}


async def none_is_kept(request: Request) -> NoReturn:
    """Of an answer by its id. Raises: ApiError 404."""
    name = quoted(request.path_params["id"])
    message = f"response {name} is not kept, as none is; send the conversation as input"
    raise ApiError(404, message, code="response_not_found")


class Responses:
    def __init__(self, serving: Serving, bodies: Bodies) -> None:
        self._serving = serving
        self._bodies = bodies

    async def create(self, request: Request) -> Response:
        """Raises: ApiError."""
        body = parse_response_body(await self._bodies.read_object(request))
        try:
            return await self._answer(request, body)
        except ChoraleError as error:
            raise _in_its_words(api_error(error)) from error

    async def _answer(self, request: Request, body: ResponseBody) -> Response:
        generate, functions = response_request(body)
        answer_id = new_id("resp")
        choices = self._serving.choices(request, body, answer_id, [(0, "", generate)])
        try:
            await while_connected(request.receive, choices.start())
            (choice,) = choices.choices
            served = served_model(choice)
            headers = {"x-request-id": answer_id, MODEL_HEADER: served}
            answer = _Answer(answer_id, body, choice, functions)
            if body.stream:
                return EventStream(
                    _events(choices, answer),
                    choices.close,
                    headers,
                    done=b"",
                    failure=answer.failed,
                    named=True,
                )
            await while_connected(request.receive, collect(choices, answer.hear))
        except BaseException:
            await choices.close()
            raise
        return json_response(answer.whole, headers=headers)


async def _events(choices: Choices, answer: _Answer) -> AsyncGenerator[Event]:
    for event in answer.begin():
        yield event
    async with aclosing(choices.events()) as responses:
        async for _, response in responses:
            for event in answer.add(response):
                yield event


class _Answer:
    """One answer under way. functions: that may be called. Raises: as AnswerCalls."""

    def __init__(
        self, answer_id: str, body: ResponseBody, choice: Choice, functions: Functions
    ) -> None:
        calls = None
        if functions and choice.accepted is not None:
            calls = AnswerCalls(choice.accepted, functions, streams=bool(body.stream))
        self._calls = calls
        self._choice = choice
        self._output = Output(calls.new_id if calls else None)
        model = body.model or served_model(choice).partition("@")[0]
        self._said = _said(answer_id, body, model)
        self._num_events = 0

    def begin(self) -> list[Event]:
        kinds = ("response.created", "response.in_progress")
        return [self._numbered({"type": kind, "response": self._shown()}) for kind in kinds]

    def add(self, response: pb.GenerateResponse) -> list[Event]:
        """The events of an event after `accepted`."""
        if response.HasField("tokens"):
            tokens = response.tokens
            logprobs = chat_logprobs(tokens.logprobs)["content"] if tokens.logprobs else ()
            events = self._output.add(self._pieces(tokens.text), logprobs)
            return [self._numbered(event) for event in events]
        if not response.HasField("finished"):
            return []
        finished = response.finished
        is_whole = finished.finish_reason != pb.FINISH_REASON_LENGTH
        status = "completed" if is_whole else "incomplete"
        events = [
            *self._output.add(self._pieces(finished.text, last=True)),
            *self._output.end(status),
        ]
        self._said |= {
            "status": status,
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "completed_at": int(time.time()) if is_whole else None,
            "usage": _usage(finished.usage),
        }
        events.append({"type": f"response.{status}", "response": self._shown()})
        return [self._numbered(event) for event in events]

    def hear(self, _: Choice, response: pb.GenerateResponse) -> None:
        """Of an answer that is shown whole."""
        self.add(response)

    @property
    def whole(self) -> dict[str, Any]:
        """Of one that has ended. Raises: InternalError when it has not."""
        assert self._choice.end
        return self._shown()

    def failed(self, error: ApiError) -> Event:
        """The last event of an answer that failed on its way."""
        for _ in self._output.end("incomplete"):
            pass
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self._said |= {
            "status": "failed",
            "error": {"code": code, "message": error.message},
        }
        return self._numbered({"type": "response.failed", "response": self._shown()})

    def _pieces(self, text: str, *, last: bool = False) -> Iterable[Piece]:
        if self._calls is not None:
            return self._calls.pieces(text, last=last)
        return (Content(text),) if text else ()

    def _shown(self) -> dict[str, Any]:
        return {**self._said, "output": self._output.shown()}

    def _numbered(self, event: Event) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return {**event, "sequence_number": number}


def _said(answer_id: str, body: ResponseBody, model: str) -> dict[str, Any]:
    """What every form of one answer repeats: what was asked for, and defaults as they are here."""
    form = body.text.format if body.text is not None else None
    choice = body.tool_choice or "auto"
    return {
        "id": answer_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": {"type": "text"} if form is None else _given(form)},
        "tools": [_NO_FUNCTION | _given(tool) for tool in body.tools or ()],
        "tool_choice": choice if isinstance(choice, str) else _given(choice),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "metadata": body.metadata or {},
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "store": False,
        "background": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "truncation": "disabled",
        "usage": None,
    }


def _given(model: Any) -> dict[str, Any]:
    return model.model_dump(by_alias=True, exclude_none=True)


def _usage(usage: pb.Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    }


def _in_its_words(error: ApiError) -> ApiError:
    error.param = _PARAMS.get(error.param or "", error.param)
    return error
