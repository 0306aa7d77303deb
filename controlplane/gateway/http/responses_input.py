"""The input of a Responses request as a chat: texts, messages, calls and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.failures import ApiError, bad_request, quoted
from controlplane.gateway.http.json_values import list_of, object_of, text_of
from controlplane.gateway.http.prompts import MAX_CALLS, MAX_MESSAGES

_ROLES = ("user", "assistant", "system", "developer")
# What items of an answer carry when they are handed back, and says nothing new.
_OF_ANSWERS = frozenset({"id", "status", "type"})
_PART_TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
_OF_PARTS = frozenset({"type", "annotations", "logprobs"})


def parse_input(value: object, instructions: str | None) -> pb.Chat:
    """instructions: what the system says before all else. Raises: ApiError 400."""
    chat = pb.Chat()
    if instructions:
        chat.messages.add(role="system", content=instructions)
    if isinstance(value, str):
        chat.messages.add(role="user", content=value)
        return chat
    items = list_of(value)
    if not items:
        raise bad_request("input", "input must be a text or a list of at least one item")
    if len(items) > MAX_MESSAGES:
        raise bad_request("input", f"input has {len(items)} items; at most {MAX_MESSAGES} go")
    for at, item in enumerate(items):
        _put(chat, item, f"input[{at}]")
    return chat


def _put(chat: pb.Chat, item: object, where: str) -> None:
    fields = object_of(item)
    kind = fields.get("type", "message" if "role" in fields else None)
    match kind:
        case "message":
            _put_message(chat, fields, where)
        case "function_call":
            _put_call(chat, fields, where)
        case "function_call_output":
            _put_output(chat, fields, where)
        case "item_reference":
            raise _malformed(where, "refers to an item, and none is kept here; send the item")
        case _:
            known = "message, function_call and function_call_output"
            raise _malformed(where, f"is of type {quoted(kind)}; items are {known}")


def _put_message(chat: pb.Chat, fields: Mapping[str, Any], where: str) -> None:
    _only(fields, {"role", "content", "phase"}, where)
    if (role := fields.get("role")) not in _ROLES:
        raise _malformed(f"{where}.role", f"is {quoted(role)}, not one of {', '.join(_ROLES)}")
    chat.messages.add(role=role, content=_text(fields.get("content"), f"{where}.content"))


def _put_call(chat: pb.Chat, fields: Mapping[str, Any], where: str) -> None:
    """Calls that follow each other, and the text before them, were one turn."""
    _only(fields, {"call_id", "name", "arguments"}, where)
    texts = [fields.get(name) for name in ("call_id", "name", "arguments")]
    if not all(isinstance(text, str) for text in texts):
        raise _malformed(where, "must have texts as call_id, name and arguments")
    turn = chat.messages[-1] if chat.messages else None
    if turn is None or turn.role != "assistant":
        turn = chat.messages.add(role="assistant")
    if len(turn.tool_calls) == MAX_CALLS:
        raise _malformed(where, f"is one call more than the {MAX_CALLS} that a turn may have")
    call_id, name, arguments = cast("list[str]", texts)
    turn.tool_calls.add(id=call_id, name=name, arguments=arguments)


def _put_output(chat: pb.Chat, fields: Mapping[str, Any], where: str) -> None:
    _only(fields, {"call_id", "output"}, where)
    if not isinstance(call_id := fields.get("call_id"), str) or not call_id:
        raise _malformed(f"{where}.call_id", f"is {quoted(call_id)}; it must name the call")
    content = _text(fields.get("output"), f"{where}.output")
    chat.messages.add(role="tool", content=content, tool_call_id=call_id)


def _text(value: object, where: str) -> str:
    text = text_of(value, lambda part: _part(part, where))
    if text is None:
        raise _malformed(where, "must be a text or a list of text parts")
    return text


def _part(part: object, where: str) -> str:
    fields = object_of(part)
    field = _PART_TEXTS.get(str(fields.get("type")), "")
    text = fields.get(field)
    if not isinstance(text, str):
        kind = quoted(fields.get("type"))
        raise _malformed(where, f"holds a part of type {kind}; only input_text and output_text go")
    for name, value in fields.items():
        if name != field and name not in _OF_PARTS and value is not None:
            raise _malformed(where, f"holds a part with {quoted(name)}, which is not supported")
    return text


def _only(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    for name, value in fields.items():
        if name not in known and name not in _OF_ANSWERS and value is not None:
            raise _malformed(where, f"has {quoted(name)}, which is not supported here")


def _malformed(where: str, what: str) -> ApiError:
    return bad_request("input", f"{where} {what}")
