"""The requests of OpenAI's Responses API that are taken here.

As in `schema`, every field is used, or refused. Answers are kept nowhere, so what asks for one that
was is refused, and the whole conversation is the request's `input`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.constraints import (
    NamedSchema,
    ResponseFormat,
)
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.fields import Test, nothing, one_of, parse_fields
from controlplane.gateway.http.responses_input import parse_input
from controlplane.gateway.http.sampling import sampling_of
from controlplane.gateway.http.schema import MAX_LOGPROBS, Count, SampledBody
from controlplane.gateway.http.tools import (
    MAX_TOOLS,
    Function,
    FunctionName,
    Name,
    NamedTool,
    Tool,
    ToolChoice,
    put_tools,
)

LOGPROBS = "message.output_text.logprobs"
# Of answers that reason apart from their text: there is nothing of it to include.
_REASONING = "reasoning.encrypted_content"
MAX_INCLUDES = 16

# Parameters of the functions that may be called, by name, as `put_tools` has them.
Functions = Mapping[str, Any]


class TextFormat(BaseModel):
    """What `response_format` is to chat, with the schema's fields beside its type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: TextFormat | None = None


class FunctionTool(BaseModel):
    """A function, with what chat has in an object of its own beside its type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: Name


class ResponseStreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    # As chat's: there is none.
    include_obfuscation: Literal[False] | None = None


class ResponseBody(SampledBody):
    """POST /v1/responses."""

    # A text or items: see responses_input.py.
    input: Any
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: Text | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            Field(max_length=MAX_INCLUDES),
        ]
        | None
    ) = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    stream_options: ResponseStreamOptions | None = None

    @property
    def answer_format(self) -> ResponseFormat | None:
        return _chat_format(self.text)

    @property
    def shows_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


def _asks_for_none(reasoning: object) -> bool:
    """Whether it asks for no reasoning: {}, or an effort of "none"."""
    if not isinstance(reasoning, dict):
        return False
    given = {k: v for k, v in cast("Mapping[str, Any]", reasoning).items() if v is not None}
    return not given or given == {"effort": "none"}


# What names something that was kept.
_OF_KEPT = ("previous_response_id", "conversation", "prompt")
_NOT_SERVED: Mapping[str, Test] = {
    "background": one_of(False),
    "background_options": nothing,
    "context_management": one_of([]),
    "conversation": nothing,
    "image": nothing,
    "max_tool_calls": nothing,
    "moderation": nothing,
    "previous_response_id": nothing,
    "prompt": nothing,
    "prompt_cache_options": nothing,
    "prompt_cache_retention": nothing,
    "reasoning": _asks_for_none,
    "truncation": one_of("disabled"),
}


def parse_response_body(value: Mapping[str, Any]) -> ResponseBody:
    """The request in `value`. Raises: ApiError 400 naming the first field at fault."""
    for name in _OF_KEPT:
        if value.get(name) is not None:
            message = f"{name}: nothing is kept here to go on from; send all of it as input"
            raise bad_request(name, message, "unsupported_parameter")
    body = parse_fields(ResponseBody, value, _NOT_SERVED)
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options", "stream_options needs stream=true; leave it out")
    if body.top_logprobs and not body.shows_logprobs:
        raise bad_request("top_logprobs", f"top_logprobs needs include=[{LOGPROBS!r}]")
    if body.shows_logprobs and body.tools and body.tool_choice != "none":
        # Which part of a text is a call is known only later than its tokens are.
        raise bad_request("include", f"include={LOGPROBS!r} and tools do not go together")
    return body


def response_request(body: ResponseBody) -> tuple[pb.GenerateRequest, Functions]:
    """What is to be generated, and the functions that may be called. Raises: ApiError 400."""
    chat = parse_input(body.input, body.instructions)
    tools = [_chat_tool(tool) for tool in body.tools or ()]
    functions = put_tools(chat, tools, _chat_choice(body), body.parallel_tool_calls)
    if functions and body.constraint is not None:
        param = "text" if body.structured_outputs is None else "structured_outputs"
        message = f"{param} and tools both say what the answer is to be; leave one of them out"
        raise bad_request(param, message)
    logprobs = (body.top_logprobs or 0) if body.shows_logprobs else None
    sampling = sampling_of(body, choice=0, max_tokens=body.max_output_tokens, logprobs=logprobs)
    return pb.GenerateRequest(chat=chat, sampling=sampling), functions


def _chat_format(text: Text | None) -> ResponseFormat | None:
    form = text.format if text is not None else None
    if form is None:
        return None
    if form.type != "json_schema":
        if form.schema_ is not None:
            message = f"text.format.schema contradicts type={form.type}; leave one of them out"
            raise bad_request("text", message)
        return ResponseFormat(type=form.type)
    if form.schema_ is None:
        message = "parameter text.format.schema is missing"
        raise bad_request("text", message, "missing_required_parameter")
    schema = NamedSchema.model_validate({"schema": form.schema_})
    return ResponseFormat(type=form.type, json_schema=schema)


def _chat_tool(tool: FunctionTool) -> Tool:
    given = tool.model_dump(exclude_unset=True, exclude={"type"})
    return Tool(type="function", function=Function(**given))


def _chat_choice(body: ResponseBody) -> ToolChoice | None:
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return NamedTool(type="function", function=FunctionName(name=choice.name))
    return choice
