"""An answer of the Responses API as its text comes: items, and the events that tell of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chorale.tool_call_pieces import Arguments, CallBegun, Content, Piece

# Of the stream, without its number.
Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(slots=True)
class Message:
    """index: of the item in the answer."""

    index: int
    id: str = field(default_factory=lambda: new_id("msg"))
    status: Status = "in_progress"
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(self.texts),
            "annotations": [],
            "logprobs": list(self.logprobs),
        }

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": [self.part] if self.texts or self.status != "in_progress" else [],
        }


@dataclass(slots=True)
class Call:
    index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: new_id("fc"))
    status: Status = "in_progress"
    arguments: list[str] = field(default_factory=list[str])

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
        }


class Output:
    """The items of one answer. What changes it gives the events of that, without their numbers.

    new_call_id: of a call; None where there are none to be told from the text.
    """

    def __init__(self, new_call_id: Callable[[], str] | None) -> None:
        self.items: list[Message | Call] = []
        self._open: Message | Call | None = None
        self._new_call_id = new_call_id
        self._space = ""  # that may turn out to stand between calls, and is no message then

    def add(
        self, pieces: Iterable[Piece], logprobs: Sequence[dict[str, Any]] = ()
    ) -> Iterator[Event]:
        """logprobs: of the tokens that `pieces` are the text of."""
        for piece in pieces:
            match piece:
                case Content(said):
                    yield from self._say(said, logprobs)
                    logprobs = ()
                case CallBegun(_, name):
                    assert self._new_call_id is not None
                    yield from self._close()
                    yield from self._begin(Call(len(self.items), self._new_call_id(), name))
                case Arguments(_, more):
                    yield from self._argue(more)
        if logprobs:  # of tokens that have no text of their own yet
            yield from self._say("", logprobs)

    def end(self, status: Status) -> Iterator[Event]:
        """status: of what is still open. An answer without any item is an empty message."""
        if not self.items:
            said, self._space = self._space, ""
            yield from self._begin(Message(0))
            if said:
                yield from self._more(said, ())
        yield from self._close(status)

    def shown(self) -> list[dict[str, Any]]:
        return [item.shown() for item in self.items]

    def _say(self, said: str, logprobs: Sequence[dict[str, Any]]) -> Iterator[Event]:
        if not isinstance(self._open, Message):
            if self._new_call_id is not None and not said.strip():
                self._space += said
                return
            yield from self._close()
            yield from self._begin(Message(len(self.items)))
        said, self._space = self._space + said, ""
        yield from self._more(said, logprobs)

    def _more(self, said: str, logprobs: Sequence[dict[str, Any]]) -> Iterator[Event]:
        message = self._open
        assert isinstance(message, Message)
        message.texts.append(said)
        message.logprobs += logprobs
        yield self._event("output_text.delta", delta=said, logprobs=list(logprobs), content_index=0)

    def _argue(self, more: str) -> Iterator[Event]:
        call = self._open
        assert isinstance(call, Call)
        call.arguments.append(more)
        yield self._event("function_call_arguments.delta", delta=more)

    def _begin(self, item: Message | Call) -> Iterator[Event]:
        self._open = item
        self.items.append(item)
        yield {
            "type": "response.output_item.added",
            "output_index": item.index,
            "item": item.shown(),
        }
        if isinstance(item, Message):
            yield self._event("content_part.added", content_index=0, part=item.part)

    def _close(self, status: Status = "completed") -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        item.status = status
        if isinstance(item, Message):
            part = item.part
            text, logprobs = part["text"], part["logprobs"]
            yield self._event("output_text.done", content_index=0, text=text, logprobs=logprobs)
            yield self._event("content_part.done", content_index=0, part=part)
        else:
            arguments = "".join(item.arguments)
            yield self._event("function_call_arguments.done", name=item.name, arguments=arguments)
        yield {
            "type": "response.output_item.done",
            "output_index": item.index,
            "item": item.shown(),
        }
        self._open = None
        self._space = ""

    def _event(self, kind: str, **fields: Any) -> Event:
        assert self._open is not None
        where = {"item_id": self._open.id, "output_index": self._open.index}
        return {"type": f"response.{kind}", **where, **fields}
