"""Builds requests from the keyword arguments that both clients take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf import duration_pb2

from chorale.chat_requests import chat_message, put_tools
from chorale.errors import InvalidArgumentError
from chorale.objective import set_ttft_slo
from chorale.prefixes import prompt_prefixes
from chorale.prompt_size import prompt_size
from chorale.v1 import adapter_registry_pb2, admission_pb2, fleet_pb2
from chorale.v1 import inference_pb2 as pb


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate` and `complete`; what is left out takes the server's default.

    Exactly one input is required: the positional `prompt`, `prompt_token_ids` or `messages`
    (mappings with "role" and "content"). The sampling options are those of
    chorale.v1.SamplingParameters, `stop` being one string or several.

    timeout: seconds for the whole call; it also bounds the time in the server's queue.
    ticket: from `admit`, when the client's address is a data plane.
    generated_token_ids: tokens that an earlier stream has delivered; generation goes on after them.
    source_token: opens the adapter's source when that is private.
    priority: -10 to 10, higher first among waiting requests, as far as the tenant may.
    ttft_slo: seconds to the first token; the request fails as soon as that is out of reach.
    ttft_path_s: of that, whoever names it, what the way from here to the user takes.
    routing_key: whom it is for, as a user's id: equal ones get the same version of an alias.
    return_prompt_token_ids: whether `Accepted` is to have the prompt as the model sees it.
    cache_salt: only requests of the same one find what is cached of the prompt.

    What the text must be (chorale.v1.Constraint), at most one of: json_schema, as a mapping or as
    JSON text; json_object=True; regex, for the whole text; choices; grammar, in Lark.
    logit_bias: what is added to tokens' logits, by id, each from -100 to 100.

    Of a chat, in OpenAI's form: `tools`, `tool_choice` ("none", "auto", "required" or one function)
    and `parallel_tool_calls`; messages may have "tool_calls", of an assistant, and "tool_call_id"
    and "name", of a tool. `find_tool_calls` tells the calls from the completion's text.
    """

    prompt_token_ids: Sequence[int] | None
    messages: Sequence[Mapping[str, Any]] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    model: str
    request_id: str
    tenant: str
    ticket: bytes
    generated_token_ids: Sequence[int]
    source_token: str
    priority: int
    ttft_slo: float | None
    ttft_path_s: float
    routing_key: str
    return_prompt_token_ids: bool
    cache_salt: str
    max_tokens: int | None
    clamp_max_tokens: bool
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    json_schema: Mapping[str, Any] | bool | str | None
    json_object: bool
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    logit_bias: Mapping[int, float] | None
    timeout: float | None


_OPTIONS = frozenset(GenerateOptions.__annotations__)
_OPTIONAL_SAMPLING = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
    "prompt_logprobs",
)


def generate_request(
    prompt: str | None, options: GenerateOptions, *, tenant: str
) -> pb.GenerateRequest:
    """The request that the arguments describe.

    Raises: TypeError for an unknown option, InvalidArgumentError when not exactly one input is
    given or a value does not fit its field.
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(_OPTIONS))}")
    try:
        request = pb.GenerateRequest(
            request_id=options.get("request_id", ""),
            model=options.get("model", ""),
            ticket=options.get("ticket", b""),
            generated_token_ids=options.get("generated_token_ids", ()),
            tenant=options.get("tenant", tenant),
            priority=options.get("priority", 0),
            ttft_path_s=options.get("ttft_path_s", 0.0),
            routing_key=options.get("routing_key", ""),
            return_prompt_token_ids=options.get("return_prompt_token_ids", False),
            cache_salt=options.get("cache_salt", ""),
            sampling=_sampling(options),
        )
        if (ttft_slo := options.get("ttft_slo")) is not None:
            set_ttft_slo(request, ttft_slo)
        _set_input(request, prompt, options)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", f"an argument is invalid: {error}"
        ) from error
    return request


def _set_input(request: pb.GenerateRequest, prompt: str | None, options: GenerateOptions) -> None:
    token_ids = options.get("prompt_token_ids")
    messages = options.get("messages")
    given = [value for value in (prompt, token_ids, messages) if value is not None]
    if len(given) != 1:
        raise InvalidArgumentError(
            "INPUT_AMBIGUOUS",
            f"exactly one of prompt, prompt_token_ids and messages is needed, got {len(given)}",
            metadata={"num_inputs": str(len(given))},
        )
    if prompt is not None:
        request.prompt = prompt
    elif token_ids is not None:
        request.prompt_token_ids.ids.extend(token_ids)
        request.prompt_token_ids.SetInParent()
    else:
        request.chat.SetInParent()
        for index, message in enumerate(messages or ()):
            request.chat.messages.append(chat_message(index, message))
    put_tools(request, options)


def _sampling(options: GenerateOptions) -> pb.SamplingParameters:
    values: dict[str, Any] = {name: options.get(name) for name in _OPTIONAL_SAMPLING}
    given = {name: value for name, value in values.items() if value is not None}
    stop = options.get("stop", ())
    return pb.SamplingParameters(
        stop=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=options.get("stop_token_ids", ()),
        ignore_eos=options.get("ignore_eos", False),
        clamp_max_tokens=options.get("clamp_max_tokens", False),
        constraint=_constraint(options),
        logit_bias=options.get("logit_bias") or {},
        **given,
    )


def _constraint(options: GenerateOptions) -> pb.Constraint | None:
    schema, choices = options.get("json_schema"), options.get("choices")
    if isinstance(choices, str):
        raise TypeError("choices is a text; give a list of texts")
    kinds: dict[str, Any] = {
        "json_schema": schema if isinstance(schema, str | None) else json.dumps(schema),
        "json_object": options.get("json_object") or None,
        "regex": options.get("regex"),
        "choices": None if choices is None else pb.Choices(texts=choices),
        "grammar": options.get("grammar"),
    }
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) > 1:
        raise InvalidArgumentError(
            "CONSTRAINT_AMBIGUOUS",
            f"{' and '.join(given)} are given; a text can be held to one of them",
            metadata={"num_constraints": str(len(given))},
        )
    return pb.Constraint(**given) if given else None


class AdmitOptions(TypedDict, total=False):
    """Keyword arguments of `admit`; what is left out is not known or not asked for.

    excluded_data_plane_ids: not to be picked. source_token: opens the adapter's source when that is
    private. prompt, prompt_token_ids or messages, with tools and tool_choice: as in
    GenerateOptions, for placement where their
    beginning was computed lately; only their length and hashes are sent. num_prompt_tokens, or
    num_prompt_characters where the tokens are not known: their length, where they are not given.
    num_generated_tokens: of a request that goes on, to be computed before the first token, too.
    ttft_slo: seconds to the first token; refused at once where no data plane is expected to make
    it. ttft_path_s, priority: as in GenerateOptions. routing_key: equal ones get the same version
    of an alias.
    max_tokens: of the answer, for the tenant's tokens per minute; left out: what the context has
    left. continued_ticket: one that the request had before, so that it is not charged again.
    cache_salt: as in GenerateOptions; it goes into the hashes.
    """

    excluded_data_plane_ids: Sequence[str]
    source_token: str
    routing_key: str
    prompt: str | None
    prompt_token_ids: Sequence[int] | None
    messages: Sequence[Mapping[str, Any]] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    num_prompt_tokens: int
    num_prompt_characters: int
    num_generated_tokens: int
    ttft_slo: float
    ttft_path_s: float
    priority: int
    max_tokens: int
    continued_ticket: bytes
    cache_salt: str


def admit_request(model: str, options: AdmitOptions, *, tenant: str) -> admission_pb2.AdmitRequest:
    """Raises: TypeError for an unknown option, InvalidArgumentError when a value does not fit."""
    unknown = sorted(set(options) - set(AdmitOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    try:
        request = admission_pb2.AdmitRequest(
            model=model,
            tenant=tenant,
            excluded_data_plane_ids=options.get("excluded_data_plane_ids", ()),
            routing_key=options.get("routing_key", ""),
            priority=options.get("priority", 0),
            ttft_path_s=options.get("ttft_path_s", 0.0),
            max_tokens=options.get("max_tokens"),
            continued_ticket=options.get("continued_ticket", b""),
        )
        if (ttft_slo := options.get("ttft_slo")) is not None:
            set_ttft_slo(request, ttft_slo)
        _set_prompt(request, options)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", f"an argument is invalid: {error}"
        ) from error
    return request


def _set_prompt(request: admission_pb2.AdmitRequest, options: AdmitOptions) -> None:
    sizes = [options.get("num_prompt_tokens", 0), options.get("num_prompt_characters", 0)]
    inputs: GenerateOptions = {
        "prompt_token_ids": options.get("prompt_token_ids"),
        "messages": options.get("messages"),
    }
    tools: GenerateOptions = {
        "tools": options.get("tools"),
        "tool_choice": options.get("tool_choice"),
    }
    prompt = options.get("prompt")
    given = (prompt, *inputs.values(), *tools.values())
    if any(value is not None for value in given):
        if any(sizes):
            raise ValueError("a prompt is given, and its length besides")
        described = pb.GenerateRequest(cache_salt=options.get("cache_salt", ""))
        _set_input(described, prompt, {**inputs, **tools})
        request.prompt_size.CopyFrom(prompt_size(described))
        if (prefixes := prompt_prefixes(described)) is not None:
            request.prompt_prefixes.CopyFrom(prefixes)
    else:
        request.prompt_size.num_tokens, request.prompt_size.num_characters = sizes
    request.prompt_size.num_generated_tokens = options.get("num_generated_tokens", 0)


def direct_request(
    name: str,
    action: fleet_pb2.AdapterAction,
    tier: fleet_pb2.AdapterTier,
    within_s: float | None,
    data_plane_id: str,
) -> fleet_pb2.DirectAdapterRequest:
    """within_s: None is the server's default."""
    within = None
    if within_s is not None:
        within = duration_pb2.Duration()
        within.FromMilliseconds(int(within_s * 1000))
    return fleet_pb2.DirectAdapterRequest(
        name=name, action=action, tier=tier, within=within, data_plane_id=data_plane_id
    )


def alias_request(
    name: str, adapter: str, version: int, targets: Mapping[str, int] | None
) -> adapter_registry_pb2.SetAliasRequest:
    """targets: references to their weights. Raises: InvalidArgumentError."""
    alias = adapter_registry_pb2.Alias(name=name, adapter=adapter, version=version)
    if targets and (adapter or version):
        raise InvalidArgumentError(
            "ARGUMENT_INVALID", "an alias is set to an adapter or to targets, not to both"
        )
    for reference, weight in (targets or {}).items():
        bare, at, number = reference.partition("@")
        is_number = number.isascii() and number.isdecimal() and not number.startswith("0")
        try:
            version = int(number) if is_number else -at.count("@")  # which no field takes
            alias.targets.add(adapter=bare, version=version, weight=weight)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "ARGUMENT_INVALID",
                f"target {reference[:200]!r} is no NAME or NAME@VERSION with a weight: {error}",
            ) from error
    if len(alias.targets) == 1 and alias.targets[0].weight:  # as older servers know it, too
        alias.adapter, alias.version = alias.targets[0].adapter, alias.targets[0].version
        del alias.targets[:]
    return adapter_registry_pb2.SetAliasRequest(alias=alias)
