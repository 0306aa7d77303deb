"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.choices import Choice
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.logprobs import chat_logprobs
from controlplane.gateway.http.prompts import parse_messages
from controlplane.gateway.http.sampling import sampling_of
from controlplane.gateway.http.schema import ChatBody
from controlplane.gateway.http.serving import finish_reason
from controlplane.gateway.http.tools import AnswerCalls, put_tools


def chat_requests(
    body: ChatBody,
) -> tuple[ChatFormat, list[tuple[int, str, pb.GenerateRequest]]]:
    """How the answer is shown, and (0, "", request) for each choice, in order.

    Raises: ApiError 400.
    """
    chat = parse_messages(body.messages)
    functions = put_tools(chat, body.tools, body.tool_choice, body.parallel_tool_calls)
    if functions and body.constraint is not None:
        param = "response_format" if body.structured_outputs is None else "structured_outputs"
        message = f"{param} and tools both say what the answer is to be; leave one of them out"
        raise bad_request(param, message)
    logprobs = _logprobs(body)
    max_tokens = _max_tokens(body)
    requests: list[tuple[int, str, pb.GenerateRequest]] = []
    for choice in range(body.num_choices):
        sampling = sampling_of(body, choice=choice, max_tokens=max_tokens, logprobs=logprobs)
        requests.append((0, "", pb.GenerateRequest(chat=chat, sampling=sampling)))
    return ChatFormat(body, functions), requests


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise bad_request(
            "max_tokens",
            f"max_tokens={old} contradicts max_completion_tokens={new}; leave one of them out",
        )
    return old if new is None else new


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise bad_request("top_logprobs", "top_logprobs needs logprobs=true")
    return None


class ChatFormat:
    """chat.completion objects, and chat.completion.chunk objects.

    functions: that may be called, as `put_tools` has them.
    """

    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_suffix = ".chunk"

    def __init__(self, body: ChatBody, functions: Mapping[str, Any] | None = None) -> None:
        self._token_ids = bool(body.return_token_ids)
        self._streams = bool(body.stream)
        self._functions = functions or {}
        self._calls: dict[int, AnswerCalls] = {}  # by choice; empty without tools

    def accepted(self, choice: Choice) -> None:
        if self._functions and choice.accepted is not None:
            calls = AnswerCalls(choice.accepted, self._functions, streams=self._streams)
            self._calls[choice.index] = calls

    def hear(self, choice: Choice, response: pb.GenerateResponse) -> None:
        if calls := self._calls.get(choice.index):
            calls.add(response.tokens.text or response.finished.text)

    def beside(self, choice: Choice) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt_token_ids} if self._token_ids else {}

    def first(self, choice: Choice) -> dict[str, Any] | None:
        return self._chunk(choice, {"role": "assistant", "content": ""}, (), ())

    def tokens(self, choice: Choice, chunk: pb.TokenChunk) -> dict[str, Any] | None:
        delta = self._delta(choice, chunk.text)
        if not (delta or chunk.logprobs or self._token_ids):
            return None
        if not delta:
            delta = {"content": ""}
        return self._chunk(choice, delta, chunk.token_ids, chunk.logprobs)

    def last(self, choice: Choice, finished: pb.Finished) -> dict[str, Any]:
        delta = self._delta(choice, finished.text, last=True)
        return {
            **self._chunk(choice, delta, (), ()),
            "finish_reason": self._finish_reason(choice, finished),
            "stop_reason": choice.stop_reason,
        }

    def whole(self, choice: Choice) -> dict[str, Any]:
        calls = self._calls.get(choice.index)
        said = {"content": "".join(choice.texts)} if calls is None else calls.whole()
        shown: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "refusal": None, **said},
            "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
            "finish_reason": self._finish_reason(choice, choice.end),
            "stop_reason": choice.stop_reason,
        }
        if self._token_ids:
            shown["token_ids"] = choice.token_ids
        return shown

    def _delta(self, choice: Choice, text: str, *, last: bool = False) -> dict[str, Any]:
        """Of a chunk; empty if there is nothing to show."""
        if calls := self._calls.get(choice.index):
            return calls.delta(text, last=last)
        return {"content": text} if text else {}

    def _finish_reason(self, choice: Choice, finished: pb.Finished) -> str:
        reason = finish_reason(finished)
        calls = self._calls.get(choice.index)
        return "tool_calls" if calls and calls.any and reason == "stop" else reason

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], token_ids: Any, logprobs: Any
    ) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            "delta": delta,
            "logprobs": chat_logprobs(logprobs) if logprobs else None,
            "finish_reason": None,
        }
        if self._token_ids:
            shown["token_ids"] = list(token_ids)
        return shown
