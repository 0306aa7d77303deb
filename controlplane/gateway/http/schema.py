"""The requests that the OpenAI API takes here.

Every field is used, or refused: nothing is parsed and ignored but the few that describe the request
to its sender (`metadata`, `store`, `service_tier`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from chorale.objective import MAX_TTFT_SLO_S
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.constraints import (
    LogitBias,
    ResponseFormat,
    StructuredOutputs,
    biases_of,
    constraint_of,
)
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.fields import Test, nothing, one_of, parse_fields
from controlplane.gateway.http.tools import ToolChoice, Tools

MAX_CHOICES = 128
MAX_STOP = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 64

TokenId = Annotated[int, Field(ge=0, lt=2**32)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, lt=2**32)]

Body = TypeVar("Body", bound="GenerationBody")


def _several(stop: object) -> object:
    """One text for a list of it, an empty one for none: as a union, each of its types would have
    an error of its own for what is wrong in the other."""
    if isinstance(stop, str):
        return [stop] if stop else []
    return stop


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    # Padding against who measures encrypted streams: there is none, as who says False wants it.
    include_obfuscation: Literal[False] | None = None


class SampledBody(BaseModel, ABC):
    """What all of OpenAI's generating endpoints share. A field that is null is a field left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: (
        Annotated[list[StopText], Field(max_length=MAX_STOP), BeforeValidator(_several)] | None
    ) = None

    # Of vLLM's API.
    top_k: Annotated[int, Field(ge=-1, lt=2**32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None

    logit_bias: LogitBias | None = None

    # Only requests of the same salt find what is cached of the prompt.
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    # Seconds to the first token; the request fails as soon as that is out of reach.
    ttft_slo: Annotated[float, Field(gt=0, le=MAX_TTFT_SLO_S)] | None = None

    # Whom it is for, by OpenAI's names for that: the first that is given picks the version where
    # `model` is an alias of several.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Notes of the sender to itself.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    @abstractmethod
    def answer_format(self) -> ResponseFormat | None:
        """Raises: ApiError 400."""

    @cached_property
    def constraint(self) -> pb.Constraint | None:
        """What each choice must be. Raises: ApiError 400."""
        return constraint_of(self.answer_format, self.structured_outputs)

    @cached_property
    def biases(self) -> dict[int, float]:
        """Raises: ApiError 400."""
        return biases_of(self.logit_bias)

    @property
    def whom_for(self) -> str:
        return self.user or self.safety_identifier or self.prompt_cache_key or ""


class GenerationBody(SampledBody):
    """What completions and chat completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def answer_format(self) -> ResponseFormat | None:
        return self.response_format

    @property
    def num_choices(self) -> int:
        """Choices for each prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    # A text, token ids, or a list of either: see prompts.py.
    prompt: Any
    # 0: of the prompt alone, which `echo` shows.
    max_tokens: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    # See prompts.py.
    messages: Any
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


# Parameters of the OpenAI API that mean something that is not served here, each with the test for
# the values that ask for nothing. null always asks for nothing.
_NOT_SERVED: Mapping[type[GenerationBody], Mapping[str, Test]] = {
    CompletionBody: {
        "best_of": one_of(1),
        "suffix": one_of(""),
    },
    ChatBody: {
        "audio": nothing,
        "function_call": one_of("none"),
        "functions": one_of([]),
        "modalities": one_of(["text"]),
        "moderation": nothing,
        "prediction": nothing,
        "prompt_cache_retention": nothing,
        "reasoning_effort": one_of("none"),
        "verbosity": nothing,
        "web_search_options": nothing,
    },
}


def parse_body(kind: type[Body], value: Mapping[str, Any]) -> Body:
    """The request in `value`. Raises: ApiError 400 naming the first field at fault."""
    body = parse_fields(kind, value, _NOT_SERVED[kind])
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options", "stream_options needs stream=true; leave it out")
    return body
