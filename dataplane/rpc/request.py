"""A GenerateRequest on its way into the engine: every check, then one prepared request."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chorale.errors import InvalidArgumentError
from chorale.objective import ttft_path_s, ttft_slo_s
from chorale.v1 import inference_pb2
from dataplane import channel
from dataplane.constraints.grammar import Grammar, grammar_of
from dataplane.rpc.chat import tools_of
from dataplane.rpc.completion import Completion
from dataplane.rpc.invocation import active_from
from dataplane.rpc.prompt import check_token_ids, prompt_token_ids
from dataplane.rpc.sampling import stop_strings, to_sampling
from dataplane.text.limits import SHORT_CHARACTERS

if TYPE_CHECKING:
    from dataplane.text.tokenizer import Tokenizer

MAX_REQUEST_ID_CHARACTERS = 128
MAX_PRIORITY = 10
MAX_CACHE_SALT_CHARACTERS = 256
_SHORT_TOKENS = 1024


@dataclass(frozen=True)
class PreparedRequest:
    """A request that has passed every check. `completion` has seen the `generated` tokens."""

    request_id: str
    prompt: list[int]
    generated: list[int]
    sampling: channel.Sampling
    completion: Completion
    grammar: Grammar | None
    return_prompt: bool
    priority: int
    cache_salt: str
    ttft_slo_s: float | None
    ttft_path_s: float
    tool_call_format: str  # empty without tools
    active_from: int  # the prompt's first token that the adapter applies to


def is_short(request: inference_pb2.GenerateRequest) -> bool:
    """Whether `prepare` takes less time than handing it to another thread."""
    field = request.WhichOneof("input")
    if len(request.generated_token_ids) > _SHORT_TOKENS:
        return False
    if request.sampling.HasField("constraint"):
        return False  # a schema is looked through
    if field == "prompt_token_ids":
        return len(request.prompt_token_ids.ids) <= _SHORT_TOKENS
    return field == "prompt" and len(request.prompt) <= SHORT_CHARACTERS


def prepare(
    request: inference_pb2.GenerateRequest,
    invocation: Sequence[int] = (),
    *,
    ready: channel.Ready,
    tokenizer: Tokenizer,
) -> PreparedRequest:
    """invocation: tokens of an activated LoRA, else empty.

    Blocks while it tokenizes: call it in a worker thread unless the request `is_short`.

    Raises: InvalidArgumentError naming the field; FailedPreconditionError for a chat without a
    chat template, or with tools that the model has no format for.
    """
    if len(request.request_id) > MAX_REQUEST_ID_CHARACTERS:
        raise _too_long(
            "REQUEST_ID_TOO_LONG", "request_id", len(request.request_id), MAX_REQUEST_ID_CHARACTERS
        )
    if len(request.cache_salt) > MAX_CACHE_SALT_CHARACTERS:
        raise _too_long(
            "CACHE_SALT_TOO_LONG", "cache_salt", len(request.cache_salt), MAX_CACHE_SALT_CHARACTERS
        )
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidArgumentError(
            "PRIORITY_OUT_OF_RANGE",
            f"priority is {request.priority}; it must be in [-{MAX_PRIORITY}, {MAX_PRIORITY}]",
            metadata={"field": "priority", "value": str(request.priority)},
        )
    slo_s, path_s = ttft_slo_s(request), ttft_path_s(request)
    stop = stop_strings(request.sampling)
    tools = tools_of(request, tokenizer)
    grammar = tools.grammar if tools else None
    if request.sampling.HasField("constraint"):
        grammar = grammar_of(request.sampling.constraint)
    prompt = prompt_token_ids(
        request,
        tokenizer,
        max_context_tokens=ready.max_context_tokens,
        vocab_size=ready.vocab_size,
        tools=tools.shown if tools else (),
    )
    start = active_from(prompt, invocation, tokenizer, request.WhichOneof("input") or "input")
    sampling = to_sampling(
        request.sampling,
        num_prompt_tokens=len(prompt),
        max_context_tokens=ready.max_context_tokens,
        vocab_size=ready.vocab_size,
        grammar=grammar.text if grammar else "",
    )
    generated = _generated(request.generated_token_ids, sampling.max_tokens, ready.vocab_size)
    completion = Completion(
        tokenizer,
        sampling=sampling,
        stop=stop,
        eos_token_ids=ready.eos_token_ids,
        prompt=prompt,
        shows_calls=tools is not None,
    )
    completion.resume(generated)
    request_id = request.request_id or uuid.uuid4().hex
    return PreparedRequest(
        request_id,
        prompt,
        generated,
        sampling,
        completion,
        grammar,
        request.return_prompt_token_ids,
        request.priority,
        request.cache_salt,
        slo_s,
        path_s,
        tools.form.name if tools else "",
        start,
    )


def _generated(ids: Sequence[int], max_tokens: int, vocab_size: int) -> list[int]:
    if len(ids) > max_tokens:
        raise _too_long("GENERATED_TOKEN_IDS_TOO_LONG", "generated_token_ids", len(ids), max_tokens)
    check_token_ids("generated_token_ids", ids, vocab_size)
    return list(ids)


def _too_long(reason: str, field: str, length: int, limit: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        reason,
        f"{field} has a length of {length}; at most {limit} is taken here",
        metadata={"field": field, "length": str(length), "limit": str(limit)},
    )
