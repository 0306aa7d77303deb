"""A Chat as chat templates take it, with every bound of its tools and calls checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from chorale.errors import FailedPreconditionError, InvalidArgumentError
from chorale.tool_formats import ToolCallFormat
from chorale.v1 import inference_pb2 as pb
from dataplane.constraints.grammar import Grammar
from dataplane.constraints.json_schema import check_depth
from dataplane.constraints.limits import MAX_DEPTH
from dataplane.constraints.tools import Function, calls_grammar
from dataplane.text.tokenizer import Tokenizer

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 18
MAX_CALLS = 128  # of one message
MAX_ARGUMENTS_CHARACTERS = 1 << 20  # of all messages
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEYS = ("name", "description", "parameters", "strict")


@dataclass(frozen=True)
class Tools:
    """shown: as chat templates take them. grammar: what calls are held to; None: nothing."""

    shown: Sequence[Mapping[str, Any]]
    form: ToolCallFormat
    grammar: Grammar | None


def tools_of(request: pb.GenerateRequest, tokenizer: Tokenizer) -> Tools | None:
    """None for a request without.

    Raises: InvalidArgumentError; FailedPreconditionError when the model has no format for calls.
    """
    chat = request.chat
    if not chat.tools:
        for field in ("tool_call_required", "tool_name", "single_tool_call"):
            if getattr(chat, field):
                raise _refused(field, "is set without tools; add them, or leave it out")
        return None
    if request.sampling.HasField("constraint"):
        raise InvalidArgumentError(
            "CONSTRAINT_INVALID",
            "sampling.constraint and chat.tools both say what the text is to be; leave one out",
            metadata={"field": "sampling.constraint"},
        )
    form = tokenizer.tool_call_format
    if form is None:
        raise FailedPreconditionError(
            "TOOLS_UNSUPPORTED",
            "chat.tools: the base model's chat template tells no known format of calls; leave them"
            " out, or start the data plane with --tool-call-format",
            metadata={"field": "chat.tools"},
        )
    functions = _functions(chat)
    grammar = _grammar(chat, functions, form, tokenizer)
    return Tools([_shown(each) for each in functions], form, grammar)


def messages_of(chat: pb.Chat) -> list[dict[str, Any]]:
    """As chat templates take them. Raises: InvalidArgumentError."""
    num_characters = sum(
        len(call.arguments) for message in chat.messages for call in message.tool_calls
    )
    if num_characters > MAX_ARGUMENTS_CHARACTERS:
        what = f"have arguments of {num_characters} characters in their calls"
        raise _refused("messages", f"{what}; at most {MAX_ARGUMENTS_CHARACTERS} go")
    shown: list[dict[str, Any]] = []
    called: dict[str, str] = {}  # function by call
    for at, message in enumerate(chat.messages):
        shown.append(_message(message, f"messages[{at}]"))
        called.update((call.id, call.name) for call in message.tool_calls)
        name = called.get(message.tool_call_id)
        if message.role == "tool" and name:
            shown[-1].setdefault("name", name)  # some templates want it; OpenAI's clients tell none
    return shown


def _message(message: pb.ChatMessage, where: str) -> dict[str, Any]:
    if not message.role:
        raise InvalidArgumentError(
            "CHAT_ROLE_EMPTY",
            f'chat.{where}.role is empty; use "system", "user" or "assistant"',
            metadata={"field": f"chat.{where}.role"},
        )
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        if message.role != "assistant":
            raise _refused(f"{where}.tool_calls", "are of an assistant's message only")
        if len(message.tool_calls) > MAX_CALLS:
            what = f"has {len(message.tool_calls)} calls"
            raise _refused(f"{where}.tool_calls", f"{what}; at most {MAX_CALLS} go")
        shown["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls)
        ]
    for field in ("tool_call_id", "name"):
        if value := getattr(message, field):
            if message.role != "tool":
                raise _refused(f"{where}.{field}", "is of a tool's message only; leave it out")
            shown[field] = value
    return shown


def _call(call: pb.ToolCall, where: str) -> dict[str, Any]:
    # Arguments as an object: templates write it as JSON themselves.
    arguments = _read(call.arguments, f"{where}.arguments")
    if not call.name:
        raise _refused(f"{where}.name", "is empty; name the function that was called")
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _functions(chat: pb.Chat) -> list[dict[str, Any]]:
    if len(chat.tools) > MAX_TOOLS:
        raise _refused("tools", f"has {len(chat.tools)} functions; at most {MAX_TOOLS} go")
    size = sum(len(text.encode()) for text in chat.tools)
    if size > MAX_TOOLS_BYTES:
        raise _refused("tools", f"has {size} bytes; at most {MAX_TOOLS_BYTES} go")
    functions = [_function(text, f"tools[{at}]") for at, text in enumerate(chat.tools)]
    names: set[str] = set()
    for at, function in enumerate(functions):
        if function["name"] in names:
            raise _refused(f"tools[{at}].function.name", f"{function['name']!r} is there twice")
        names.add(function["name"])
    if chat.tool_name and chat.tool_name not in names:
        raise _refused("tool_name", f"{chat.tool_name[:64]!r} is the name of none of the tools")
    return functions


def _function(text: str, where: str) -> dict[str, Any]:
    tool = _read(text, where)
    function = tool.get("function")
    if tool.keys() != {"type", "function"} or tool["type"] != "function":
        raise _refused(where, 'must be {"type": "function", "function": {…}}')
    if not isinstance(function, dict):
        raise _refused(f"{where}.function", "must be an object")
    fields = cast("dict[str, Any]", function)
    kept = {name: value for name, value in fields.items() if value is not None}
    if unknown := sorted(kept.keys() - set(_KEYS)):
        raise _refused(f"{where}.function", f"has {unknown[0][:64]!r}; {', '.join(_KEYS)} go")
    name: object = kept.get("name")
    parameters: object = kept.get("parameters", {})
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refused(f"{where}.function.name", "must be 1 to 64 letters, digits, _ and -")
    if not isinstance(kept.get("description", ""), str):
        raise _refused(f"{where}.function.description", "must be a text")
    if not isinstance(kept.get("strict", False), bool):
        raise _refused(f"{where}.function.strict", "must be true or false")
    is_schema = isinstance(parameters, dict)
    if not is_schema or cast("dict[str, Any]", parameters).get("type", "object") != "object":
        raise _refused(f"{where}.function.parameters", "must be a JSON schema of type object")
    return kept


def _shown(function: Mapping[str, Any]) -> dict[str, Any]:
    """`strict` is no matter of the model's; parameters are looked for by some templates."""
    fields = {name: value for name, value in function.items() if name != "strict"}
    fields.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": fields}


def _grammar(
    chat: pb.Chat,
    functions: Sequence[Mapping[str, Any]],
    form: ToolCallFormat,
    tokenizer: Tokenizer,
) -> Grammar | None:
    required = chat.tool_call_required or bool(chat.tool_name)
    strict = any(each.get("strict") for each in functions)
    if not (required or strict or chat.single_tool_call):
        return None
    called = [
        Function(at, each["name"], each.get("parameters"), each.get("strict", False))
        for at, each in enumerate(functions)
        if not chat.tool_name or each["name"] == chat.tool_name
    ]
    return calls_grammar(
        form,
        called,
        required=required,
        single=chat.single_tool_call or bool(chat.tool_name),
        token_id=tokenizer.added_token_id,
    )


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise _refused(where, "is nested too deeply; make it simpler") from None
    except ValueError as error:
        raise _refused(where, f"is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _refused(where, "must be a JSON object")
    try:
        check_depth(cast("object", value), where)
    except InvalidArgumentError:
        raise _refused(where, f"is more than {MAX_DEPTH} levels deep; make it simpler") from None
    return cast("dict[str, Any]", value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _refused(field: str, what: str) -> InvalidArgumentError:
    reason = "MESSAGES_INVALID" if field.startswith("messages") else "TOOLS_INVALID"
    path = f"chat.{field}"
    return InvalidArgumentError(reason, f"{path} {what}", metadata={"field": path})
