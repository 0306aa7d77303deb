"""What an answer must be, in the terms of OpenAI, vLLM and LoRAX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.failures import ApiError, bad_request, quoted

MAX_CHOICES = 256
MAX_LOGIT_BIASES = 300
MAX_SCHEMA_CHARACTERS = 65_536
_MAX_BIAS = 100

Bias = Annotated[float, Field(ge=-_MAX_BIAS, le=_MAX_BIAS)]
LogitBias = Annotated[dict[str, Bias], Field(max_length=MAX_LOGIT_BIASES)]


class NamedSchema(BaseModel):
    """OpenAI's. The schema is enforced whether `strict` asks for it or not; name and description
    are notes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class LoraxFormat(BaseModel):
    """LoRAX's `response_format`. Its client knows json_object alone; json_schema and text are its
    server's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`: one of the first five. The others may only ask for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: Annotated[dict[str, Any] | bool | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=MAX_CHOICES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_fallback: bool | None = None
    disable_any_whitespace: Literal[False] | None = None
    disable_additional_properties: Literal[False] | None = None
    whitespace_pattern: None = None
    structural_tag: None = None


def constraint_of(
    form: ResponseFormat | None, outputs: StructuredOutputs | None
) -> pb.Constraint | None:
    """Raises: ApiError 400 when they ask for more than one thing."""
    first = _of_format(form) if form is not None else None
    second = _of_outputs(outputs) if outputs is not None else None
    if first is not None and second is not None:
        message = "structured_outputs and response_format both say what the answer must be"
        raise bad_request("structured_outputs", f"{message}; leave one of them out")
    return first or second


def lorax_constraint(form: LoraxFormat | None) -> pb.Constraint | None:
    """Raises: ApiError 400."""
    if form is None:
        return None
    schema = form.schema_
    if form.type == "text":
        if schema is not None:
            raise _contradiction("response_format.schema", "text")
        return None
    if schema is not None:
        return _schema("response_format", schema)
    if form.type == "json_schema":
        raise _missing("response_format.schema")
    return pb.Constraint(json_object=True)


def biases_of(given: Mapping[str, float] | None) -> dict[int, float]:
    """By token id. Raises: ApiError 400."""
    biases: dict[int, float] = {}
    for name, bias in (given or {}).items():
        if not (name.isascii() and name.isdecimal() and len(name) < 11 and int(name) < 2**32):
            raise bad_request("logit_bias", f"logit_bias has {quoted(name)}, which is no token id")
        if int(name) in biases:
            raise bad_request("logit_bias", f"logit_bias has token {int(name)} twice")
        biases[int(name)] = bias
    return biases


def _of_format(form: ResponseFormat) -> pb.Constraint | None:
    schema = form.json_schema
    if form.type == "json_schema":
        if schema is None:
            raise _missing("response_format.json_schema")
        return _schema("response_format", schema.schema_)
    if schema is not None:
        raise _contradiction("response_format.json_schema", form.type)
    return pb.Constraint(json_object=True) if form.type == "json_object" else None


def _of_outputs(outputs: StructuredOutputs) -> pb.Constraint:
    schema = outputs.json_
    kinds: dict[str, Any] = {
        "json_schema": None if schema is None else _text("structured_outputs", schema),
        "regex": outputs.regex,
        "choices": None if outputs.choice is None else pb.Choices(texts=outputs.choice),
        "grammar": outputs.grammar,
        "json_object": outputs.json_object or None,
    }
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) != 1:
        raise bad_request(
            "structured_outputs",
            f"structured_outputs has {len(given)} of json, regex, choice, grammar and json_object;"
            " it must have one",
        )
    return pb.Constraint(**given)


def _schema(param: str, schema: dict[str, Any]) -> pb.Constraint:
    return pb.Constraint(json_schema=_text(param, schema))


def _text(param: str, schema: dict[str, Any] | bool | str) -> str:
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        message = f"{param}: a schema of {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} go"
        raise bad_request(param, message)
    return text


def _missing(path: str) -> ApiError:
    message = f"parameter {path} is missing"
    return bad_request("response_format", message, "missing_required_parameter")


def _contradiction(path: str, kind: str) -> ApiError:
    return bad_request("response_format", f"{path} contradicts type={kind}; leave one of them out")
