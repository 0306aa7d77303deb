"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.choices import Choice
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.logprobs import chat_logprobs
from controlplane.gateway.http.prompts import parse_messages
from controlplane.gateway.http.sampling import sampling_of
from controlplane.gateway.http.schema import ChatBody
from controlplane.gateway.http.serving import finish_reason


def chat_requests(body: ChatBody) -> list[tuple[int, str, pb.GenerateRequest]]:
    """(0, "", request) for each choice, in order. Raises: ApiError 400."""
    chat = parse_messages(body.messages)
    logprobs = _logprobs(body)
    max_tokens = _max_tokens(body)
    requests: list[tuple[int, str, pb.GenerateRequest]] = []
    for choice in range(body.num_choices):
        sampling = sampling_of(body, choice=choice, max_tokens=max_tokens, logprobs=logprobs)
        requests.append((0, "", pb.GenerateRequest(chat=chat, sampling=sampling)))
    return requests


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
    """chat.completion objects, and chat.completion.chunk objects."""

    id_prefix = "chatcmpl"
    object = "chat.completion"
    chunk_suffix = ".chunk"

    def __init__(self, body: ChatBody) -> None:
        self._token_ids = bool(body.return_token_ids)

    def beside(self, choice: Choice) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt_token_ids} if self._token_ids else {}

    def first(self, choice: Choice) -> dict[str, Any] | None:
        return self._chunk(choice, {"role": "assistant", "content": ""}, (), ())

    def tokens(self, choice: Choice, chunk: pb.TokenChunk) -> dict[str, Any] | None:
        if not (chunk.text or chunk.logprobs or self._token_ids):
            return None
        delta = {"content": chunk.text}
        return self._chunk(choice, delta, chunk.token_ids, chunk.logprobs)

    def last(self, choice: Choice, finished: pb.Finished) -> dict[str, Any]:
        delta = {"content": finished.text} if finished.text else {}
        return {
            **self._chunk(choice, delta, (), ()),
            "finish_reason": finish_reason(finished),
            "stop_reason": choice.stop_reason,
        }

    def whole(self, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
            "finish_reason": finish_reason(choice.end),
            "stop_reason": choice.stop_reason,
        }
        if self._token_ids:
            shown["token_ids"] = choice.token_ids
        return shown

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
