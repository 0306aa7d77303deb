"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.choices import Choice
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.logprobs import completion_logprobs
from controlplane.gateway.http.prompts import parse_prompts
from controlplane.gateway.http.sampling import sampling_of
from controlplane.gateway.http.schema import MAX_CHOICES, CompletionBody
from controlplane.gateway.http.serving import finish_reason

DEFAULT_MAX_TOKENS = 16


def completion_requests(body: CompletionBody) -> list[tuple[int, str, pb.GenerateRequest]]:
    """(prompt's index, text to echo, request) for each choice, in order. Raises: ApiError 400."""
    prompts = parse_prompts(body.prompt)
    if len(prompts) * body.num_choices > MAX_CHOICES:
        message = f"n={body.num_choices} for {len(prompts)} prompts; at most {MAX_CHOICES} choices"
        raise bad_request("n", message)
    if body.echo and body.logprobs is None and any(prompt.text is None for prompt in prompts):
        message = "echo of token ids tells their texts beside their logprobs; give logprobs, too"
        raise bad_request("echo", message)
    if body.max_tokens == 0 and not body.echo:
        message = "max_tokens=0 generates nothing; give echo for the prompt's logprobs, or 1"
        raise bad_request("max_tokens", message)
    requests: list[tuple[int, str, pb.GenerateRequest]] = []
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    for index, prompt in enumerate(prompts):
        for choice in range(body.num_choices):
            sampling = sampling_of(
                body, choice=choice, max_tokens=max_tokens, logprobs=body.logprobs
            )
            sampling.clamp_max_tokens = body.max_tokens is None  # nobody asked for that many
            if body.echo and body.logprobs is not None:
                sampling.prompt_logprobs = body.logprobs
            request = pb.GenerateRequest(sampling=sampling)
            prompt.put_into(request)
            requests.append((index, (prompt.text or "") if body.echo else "", request))
    return requests


class CompletionFormat:
    """text_completion objects."""

    id_prefix = "cmpl"
    object = "text_completion"
    chunk_suffix = ""

    def __init__(self, body: CompletionBody) -> None:
        self._token_ids = bool(body.return_token_ids)

    def accepted(self, choice: Choice) -> None:
        """Nothing is told apart in a text."""

    def hear(self, choice: Choice, response: pb.GenerateResponse) -> None:
        """The choice itself keeps it, but for a prompt, which may be long: it is brought into the
        answer's shape as it comes, so that other streams go on meanwhile."""
        if positions := response.tokens.prompt_logprobs:
            for name, values in _prompt_logprobs(choice, positions).items():
                choice.prompt_lists.setdefault(name, []).extend(values)

    def beside(self, choice: Choice) -> dict[str, Any]:
        return {}  # each choice has its own prompt

    def first(self, choice: Choice) -> dict[str, Any] | None:
        if not (choice.echo or self._token_ids):
            return None
        return {**self._chunk(choice, choice.echo, (), ()), **self._prompt(choice)}

    def tokens(self, choice: Choice, chunk: pb.TokenChunk) -> dict[str, Any] | None:
        if chunk.prompt_logprobs:
            lists = _prompt_logprobs(choice, chunk.prompt_logprobs)
            text = "" if choice.echo else "".join(lists["tokens"])
            return self._chunk(choice, text, (), ()) | {"logprobs": lists}
        if choice.is_prompt_only or not (chunk.text or chunk.logprobs or self._token_ids):
            return None
        return self._chunk(choice, chunk.text, chunk.token_ids, chunk.logprobs)

    def last(self, choice: Choice, finished: pb.Finished) -> dict[str, Any]:
        shown = self._chunk(choice, "" if choice.is_prompt_only else finished.text, (), ())
        return {**shown, **self._end(choice)}

    def whole(self, choice: Choice) -> dict[str, Any]:
        before = choice.prompt_lists
        text = (choice.echo or "".join(before.get("tokens", ()))) + "".join(choice.texts)
        shown = self._chunk(choice, text, choice.token_ids, choice.logprobs)
        if before:
            after: dict[str, list[Any]] = shown["logprobs"] or {}
            shown["logprobs"] = {name: before[name] + after.get(name, []) for name in before}
        return {**shown, **self._prompt(choice), **self._end(choice)}

    def _end(self, choice: Choice) -> dict[str, Any]:
        if choice.is_prompt_only:
            return {"finish_reason": "length", "stop_reason": None}
        return {"finish_reason": finish_reason(choice.end), "stop_reason": choice.stop_reason}

    def _prompt(self, choice: Choice) -> dict[str, Any]:
        return {"prompt_token_ids": choice.prompt_token_ids} if self._token_ids else {}

    def _chunk(self, choice: Choice, text: str, token_ids: Any, logprobs: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        if logprobs:
            shown["logprobs"] = completion_logprobs(choice, logprobs)
        if self._token_ids:
            shown["token_ids"] = list(token_ids)
        return shown


def _prompt_logprobs(choice: Choice, positions: Sequence[pb.TokenLogprobs]) -> dict[str, Any]:
    lists = completion_logprobs(choice, positions, of_prompt=True)
    choice.num_prompt_shown += len(positions)
    return lists
