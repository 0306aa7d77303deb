"""Messages and tools of OpenAI's form, as a Chat has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chorale.v1 import inference_pb2 as pb

_TEXTS = ("tool_call_id", "name")
_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")


def chat_message(index: int, message: Mapping[str, Any]) -> pb.ChatMessage:
    """Raises: TypeError, ValueError, KeyError for what does not fit."""
    # None would be taken for a field left out, and what is not looked at for said.
    known = ("role", "content", "tool_calls", *_TEXTS)
    others = [name for name in message if name not in known and message[name]]
    if others:
        raise ValueError(f"messages[{index}] has {others[0]!r}, which is not supported")
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    content = message.get("content") if calls else message["content"]
    if content is None and calls:
        content = ""
    texts = {name: message[name] for name in _TEXTS if message.get(name)}
    given = {"role": message["role"], "content": content, **texts}
    for name, text in given.items():
        if not isinstance(text, str):
            raise TypeError(f"messages[{index}][{name!r}] is no text")
    return pb.ChatMessage(**given, tool_calls=calls)


def put_tools(request: pb.GenerateRequest, options: Mapping[str, Any]) -> None:
    """`tools`, `tool_choice` and `parallel_tool_calls` of `options`, if any.

    Raises: TypeError, ValueError, KeyError for what does not fit.
    """
    given = {name: options.get(name) for name in _OPTIONS if options.get(name) is not None}
    tools, choice = given.get("tools"), given.get("tool_choice")
    if not tools:
        others = [name for name in given if name != "tools" and given[name] != "none"]
        if others:
            raise ValueError(f"{others[0]} needs tools")
        return
    if not request.HasField("chat"):
        raise ValueError("tools need messages")
    if choice == "none":
        return
    chat = request.chat
    chat.tools.extend(json.dumps(tool, ensure_ascii=False) for tool in tools)
    chat.single_tool_call = given.get("parallel_tool_calls") is False
    if isinstance(choice, Mapping):
        chat.tool_name = choice["function"]["name"]
    elif choice == "required":
        chat.tool_call_required = True
    elif choice not in (None, "auto"):
        raise ValueError(f"tool_choice is {choice!r}; it must be none, auto, required or a mapping")


def _call(call: Mapping[str, Any]) -> pb.ToolCall:
    function = call["function"]
    return pb.ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])
