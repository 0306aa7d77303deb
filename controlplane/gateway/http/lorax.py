"""LoRAX's API: POST /, /generate and /generate_stream, for lorax-client and what speaks like it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from chorale.errors import ChoraleError
from chorale.frames import forget_frames
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.body import Bodies
from controlplane.gateway.http.choices import Choice, Choices
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.failures import ApiError, api_error, bad_request
from controlplane.gateway.http.json_response import json_response
from controlplane.gateway.http.logprobs import finite
from controlplane.gateway.http.lorax_request import Parameters, lorax_request, parse_lorax
from controlplane.gateway.http.serving import MODEL_HEADER, Serving, collect, served_model
from controlplane.gateway.http.sse import EventStream


class Lorax:
    """The handlers. Failures leave in LoRAX's shape."""

    def __init__(self, serving: Serving, bodies: Bodies) -> None:
        self._serving = serving
        self._bodies = bodies

    async def generate(self, request: Request) -> Response:
        """One object."""
        return await failing_as_lorax(self._answer(request, stream=False))

    async def generate_stream(self, request: Request) -> Response:
        """Events, one for each token; the last has the whole text."""
        return await failing_as_lorax(self._answer(request, stream=True))

    async def either(self, request: Request) -> Response:
        """As the body says: events, or a list of one object."""
        return await failing_as_lorax(self._answer(request, stream=None))

    async def _answer(self, request: Request, *, stream: bool | None) -> Response:
        value = await self._bodies.read_object(request)
        body, asked = parse_lorax(value, stream=stream)
        streams = bool(body.stream) if stream is None else stream
        if asked.decoder_input_details and (streams or not asked.details):
            message = "decoder_input_details needs details, and no stream; leave it out"
            raise bad_request("decoder_input_details", message)
        generate = lorax_request(body.inputs, asked, logprobs=streams or bool(asked.details))
        generate.request_id = answer_id = f"lorax-{uuid.uuid4().hex}"
        headers = {"x-request-id": answer_id}
        generation = self._serving.start(request, generate, asked.api_token or "")
        choice = Choice(0, 0, generation)
        choices = Choices([choice])
        before = body.inputs if asked.return_full_text else ""
        try:
            await while_connected(request.receive, choices.start())
            headers[MODEL_HEADER] = served_model(choice)
            if streams:
                events = _events(choices, choice, asked, before)
                return EventStream(events, choices.close, headers, done=b"", failure=lorax_error)
            prefill: list[dict[str, Any]] = []
            heard = collect(choices, lambda _, response: _add_prefill(prefill, response))
            await while_connected(request.receive, heard)
        except BaseException:
            await choices.close()
            raise
        whole: dict[str, Any] = {"generated_text": before + "".join(choice.texts)}
        if asked.details:
            whole["details"] = _details(choice, asked) | {
                "prefill": prefill,
                "tokens": _tokens(choice),
            }
        return json_response([whole] if stream is None else whole, headers=headers)


def lorax_error(error: ApiError) -> dict[str, Any]:
    """What lorax-client makes its exceptions of."""
    kind = "validation" if error.status < 500 else "generation"
    if error.status in (429, 503):
        kind = "overloaded"
    return {"error": error.message, "error_type": kind}


async def failing_as_lorax(answer: Awaitable[Response]) -> Response:
    """The answer, or the failure that it raises."""
    try:
        return await answer
    except ChoraleError as failure:
        forget_frames(failure)
        error = api_error(failure)
    except ApiError as failure:
        forget_frames(failure)
        error = failure
    return json_response(lorax_error(error), status=error.status, headers=error.headers)


async def _events(
    choices: Choices, choice: Choice, asked: Parameters, before: str
) -> AsyncGenerator[dict[str, Any]]:
    """Each token when the next one is there: only then is it not the last. Their texts add up to
    the generated one, those of special tokens left out."""
    text = before
    token: dict[str, Any] | None = None
    async with aclosing(choices.events()) as events:
        async for _, response in events:
            if response.HasField("tokens"):
                text += response.tokens.text
                for following in _shown(response.tokens.logprobs, response.tokens.text):
                    if token is not None:
                        yield {"token": token, "generated_text": None, "details": None}
                    token = following
    if token is not None:
        token["text"] += choice.end.text
        token["special"] = choice.end.HasField("stop_token_id") and not token["text"]
    yield {
        "token": token,
        "generated_text": text + choice.end.text,
        "details": _details(choice, asked),
    }


def _shown(positions: Sequence[pb.TokenLogprobs], text: str) -> list[dict[str, Any]]:
    """The tokens of a chunk, its text at the first: the last may turn out to be special."""
    return [
        _token(position, text if index == 0 else "") for index, position in enumerate(positions)
    ]


def _add_prefill(prefill: list[dict[str, Any]], response: pb.GenerateResponse) -> None:
    """The prompt's tokens, if they were asked for."""
    for position in response.tokens.prompt_logprobs:
        chosen = position.chosen
        logprob = finite(chosen.logprob) if prefill else None  # nothing stands before the first
        prefill.append({"id": chosen.token_id, "text": chosen.text, "logprob": logprob})


def _tokens(choice: Choice) -> list[dict[str, Any]]:
    tokens = [_token(position, position.chosen.text) for position in choice.logprobs]
    if tokens:
        tokens[-1]["special"] = choice.end.HasField("stop_token_id")
    return tokens


def _token(position: pb.TokenLogprobs, text: str) -> dict[str, Any]:
    chosen = position.chosen
    token: dict[str, Any] = {
        "id": chosen.token_id,
        "text": text,
        "logprob": finite(chosen.logprob),
        "special": False,
        "skipped": False,
    }
    if position.top:
        token["alternative_tokens"] = [
            {"id": top.token_id, "text": top.text, "logprob": finite(top.logprob)}
            for top in position.top
        ]
    return token


def _details(choice: Choice, asked: Parameters) -> dict[str, Any]:
    usage = choice.end.usage
    accepted = choice.accepted
    return {
        "finish_reason": _finish_reason(choice.end),
        "prompt_tokens": usage.num_prompt_tokens,
        "generated_tokens": usage.num_completion_tokens,
        "skipped_tokens": 0,
        "seed": accepted.seed if asked.samples and accepted is not None else None,
    }


def _finish_reason(finished: pb.Finished) -> str:
    if finished.finish_reason == pb.FINISH_REASON_LENGTH:
        return "length"
    return "stop_sequence" if finished.HasField("stop_string") else "eos_token"
