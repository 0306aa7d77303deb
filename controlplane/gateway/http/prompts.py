"""What to continue, out of the many forms that the OpenAI API has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.failures import ApiError, bad_request, quoted
from controlplane.gateway.http.json_values import list_of, object_of, text_of

MAX_PROMPTS = 128
MAX_TOKEN_IDS = 2**20  # more than any context; each is looked at here, while all streams wait
MAX_MESSAGES = 10_000
MAX_ROLE_CHARACTERS = 64
MAX_CALLS = 128  # of one message

_OF_TOOLS = ("tool_call_id", "name")
_OF_MESSAGES = frozenset({"role", "content", "tool_calls", *_OF_TOOLS})
# Fields that answers carry and that senders hand back empty with the next question.
_EMPTY_IN_HISTORY = frozenset(
    {"annotations", "audio", "function_call", "refusal", "reasoning_content"}
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a completions request: a text, or token ids."""

    text: str | None
    token_ids: tuple[int, ...] | None

    def put_into(self, request: pb.GenerateRequest) -> None:
        if self.text is not None:
            request.prompt = self.text
        else:
            request.prompt_token_ids.ids.extend(self.token_ids or ())


def parse_prompts(value: object) -> list[Prompt]:
    """A text, a list of texts, token ids, or a list of lists of token ids. Raises: ApiError 400."""
    if isinstance(value, str):
        return [_text(value)]
    items = list_of(value)
    if not items:
        raise bad_request("prompt", f"prompt={quoted(value)}: {_FORMS}")
    if isinstance(items[0], int):
        return [_token_ids(items)]
    if len(items) > MAX_PROMPTS:
        raise bad_request("prompt", f"prompt has {len(items)} prompts; at most {MAX_PROMPTS} go")
    if isinstance(items[0], str):
        return [_text(item) for item in items]
    return [_token_ids(item) for item in items]


def parse_messages(value: object) -> pb.Chat:
    """The messages of a chat. Raises: ApiError 400."""
    items = list_of(value)
    if not items:
        raise bad_request("messages", "messages must be a list of at least one message")
    if len(items) > MAX_MESSAGES:
        raise bad_request("messages", f"{len(items)} messages; at most {MAX_MESSAGES} go")
    return pb.Chat(messages=[_message(item, f"messages[{i}]") for i, item in enumerate(items)])


_FORMS = "it must be a text, a list of texts, token ids, or a list of lists of token ids"


def _text(item: object) -> Prompt:
    if not isinstance(item, str) or not item:
        raise bad_request("prompt", f"prompt holds {quoted(item)}, not a text; {_FORMS}")
    return Prompt(item, None)


def _token_ids(item: object) -> Prompt:
    ids = list_of(item)
    if not ids:
        raise bad_request("prompt", f"prompt holds {quoted(item)}, not token ids; {_FORMS}")
    if len(ids) > MAX_TOKEN_IDS:
        message = f"prompt has {len(ids)} token ids; at most {MAX_TOKEN_IDS} go"
        raise bad_request("prompt", message, "context_length_exceeded")
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < 2**32:
            raise bad_request("prompt", f"prompt holds {quoted(token_id)}, not a token id")
    return Prompt(None, tuple(cast("list[int]", ids)))


def _message(item: object, where: str) -> pb.ChatMessage:
    if not isinstance(item, dict):
        raise _malformed(where, "must be an object with role and content")
    fields = cast("Mapping[str, Any]", item)
    for name, value in fields.items():
        if name in _OF_MESSAGES:
            continue
        if name not in _EMPTY_IN_HISTORY or value not in (None, [], ""):
            raise _malformed(where, f"has {quoted(name)}, which is not supported here")
    role = fields.get("role")
    if not isinstance(role, str) or not 0 < len(role) <= MAX_ROLE_CHARACTERS:
        raise _malformed(f"{where}.role", f"is {quoted(role)}, not a role")
    message = pb.ChatMessage(role=role)
    for name in _OF_TOOLS:
        if (value := fields.get(name)) not in (None, ""):
            if role != "tool" or not isinstance(value, str):
                raise _malformed(f"{where}.{name}", "must be a text, and of a tool's message")
            setattr(message, name, value)
    if (calls := fields.get("tool_calls")) not in (None, [], ""):
        if role != "assistant":
            raise _malformed(f"{where}.tool_calls", "are of an assistant's message only")
        message.tool_calls.extend(_calls(calls, f"{where}.tool_calls"))
    if not message.tool_calls or fields.get("content") is not None:
        message.content = _content(fields.get("content"), f"{where}.content")
    return message


def _content(value: object, where: str) -> str:
    text = text_of(value, lambda part: _part(part, where))
    if text is None:
        raise _malformed(where, "must be a text or a list of text parts")
    return text


def _part(part: object, where: str) -> str:
    fields = object_of(part)
    text = fields.get("text")
    if fields.get("type") != "text" or not isinstance(text, str) or len(fields) != 2:
        kind = quoted(fields.get("type"))
        raise _malformed(where, f"holds a part of type {kind}; only {{type: text, text: …}} goes")
    return text


def _calls(value: object, where: str) -> list[pb.ToolCall]:
    """Calls of functions in a message. Raises: ApiError 400."""
    items = list_of(value)
    if not 0 < len(items) <= MAX_CALLS:
        raise _malformed(where, f"must be a list of at most {MAX_CALLS} calls")
    return [_call(item, f"{where}[{at}]") for at, item in enumerate(items)]


def _call(item: object, where: str) -> pb.ToolCall:
    fields = object_of(item)
    function = object_of(fields.get("function"))
    if (
        set(fields) - {"index"} != {"id", "type", "function"}
        or fields["type"] != "function"
        or set(function) != {"name", "arguments"}
    ):
        form = '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}'
        raise _malformed(where, f"must be {form}")
    texts = (fields["id"], function["name"], function["arguments"])
    if not all(isinstance(text, str) for text in texts):
        raise _malformed(where, "must have texts as id, name and arguments")
    return pb.ToolCall(id=texts[0], name=texts[1], arguments=texts[2])


def _malformed(where: str, what: str) -> ApiError:
    return bad_request("messages", f"{where} {what}")
