"""Functions that a model may call: what requests say of them, and calls as answers show them."""

from __future__ import annotations

import json
import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from chorale.errors import UnavailableError
from chorale.tool_call_pieces import Arguments, CallBegun, Content, Piece, gathered
from chorale.tool_calls import tool_call_parser
from chorale.tool_formats import TOOL_CALL_FORMATS
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.failures import bad_request, quoted

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 18
# Chat templates of Mistral's refuse ids of any other form when they come back.
_MISTRAL_ID = string.ascii_letters + string.digits
_MISTRAL_ID_LENGTH = 9

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name


class NamedTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: FunctionName


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def put_tools(
    chat: pb.Chat,
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    parallel: bool | None,
) -> dict[str, dict[str, Any] | None]:
    """Puts into `chat` what a request says of tools; returns the parameters of those that may be
    called, by name. With choice "none" the model does not hear of them.

    Raises: ApiError 400.
    """
    if not tools:
        for param, value in (("tool_choice", choice), ("parallel_tool_calls", parallel)):
            if value is not None and value != "none":
                raise bad_request(param, f"{param} needs tools; add them, or leave it out")
        return {}
    names = [tool.function.name for tool in tools]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise bad_request("tools", f"tools[{at}] is a second function {quoted(name)}")
    if choice == "none":
        return {}
    shown = (tool.model_dump(exclude_none=True) for tool in tools)
    chat.tools.extend(json.dumps(tool, ensure_ascii=False) for tool in shown)
    size = sum(len(text.encode()) for text in chat.tools)
    if size > MAX_TOOLS_BYTES:
        raise bad_request("tools", f"tools have {size} bytes; at most {MAX_TOOLS_BYTES} go")
    if isinstance(choice, NamedTool):
        chat.tool_name = choice.function.name
        if chat.tool_name not in names:
            named = quoted(chat.tool_name)
            raise bad_request("tool_choice", f"tool_choice names {named}, which is not in tools")
    chat.tool_call_required = choice == "required"
    chat.single_tool_call = parallel is False
    return {tool.function.name: tool.function.parameters for tool in tools}


class AnswerCalls:
    """The calls of one choice, told from its text as it comes. functions: as `put_tools` has them.

    Raises: UnavailableError when the data plane has told no format that is known here.
    """

    def __init__(
        self, accepted: pb.Accepted, functions: Mapping[str, Any], *, streams: bool
    ) -> None:
        form = TOOL_CALL_FORMATS.get(accepted.tool_call_format)
        if form is None:
            raise UnavailableError(
                "TOOLS_UNKNOWN",
                f"data plane {accepted.data_plane_id!r} is of a version without tools, or with a"
                f" format of calls that is not known here, {accepted.tool_call_format[:64]!r}: wait"
                " until it is replaced",
                metadata={"data_plane_id": accepted.data_plane_id},
            )
        self._parser = tool_call_parser(form, functions, eager=streams)
        self._short_ids = form.name in ("mistral", "mistral_args")
        self._pieces: list[Piece] = []

    @property
    def any(self) -> bool:
        """Whether there has been a call."""
        return self._parser.num_calls > 0

    def pieces(self, text: str, *, last: bool = False) -> list[Piece]:
        """What became certain with `text`."""
        found = self._parser.push(text)
        return found + self._parser.finish() if last else found

    def add(self, text: str) -> None:
        """For `whole`."""
        self._pieces += self._parser.push(text)

    def whole(self) -> dict[str, Any]:
        """Of the message, at its end."""
        self._pieces += self._parser.finish()
        content, calls = gathered(self._pieces)
        if not calls:
            return {"content": content}
        return {
            "content": content or None,
            "tool_calls": [
                {"id": self.new_id(), "type": "function", "function": call._asdict()}
                for call in calls
            ],
        }

    def delta(self, text: str, *, last: bool = False) -> dict[str, Any]:
        """Of a chunk, what became certain with `text`; empty if nothing did."""
        content: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        for piece in self.pieces(text, last=last):
            match piece:
                case Content(said):
                    content.append(said)
                case CallBegun(index, name):
                    calls[index] = self._begun(index, name)
                case Arguments(index, more):
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += more
        shown: dict[str, Any] = {}
        if content:
            shown["content"] = "".join(content)
        if calls:
            shown["tool_calls"] = list(calls.values())
        return shown

    def _begun(self, index: int, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        return {"index": index, "id": self.new_id(), "type": "function", "function": function}

    def new_id(self) -> str:
        """Of a call, in the form that the model's template takes back."""
        if self._short_ids:
            return "".join(secrets.choice(_MISTRAL_ID) for _ in range(_MISTRAL_ID_LENGTH))
        return f"call_{uuid.uuid4().hex}"
