"""Calls of functions in the text of an answer, told from it piece by piece.

What is no call is content: what names no function that was offered, whose arguments are no JSON
object, and what stands around calls but for white space. No text is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from chorale.tool_call_object import CallObject, Found, read_json
from chorale.tool_formats import TOOL_CALL_FORMATS, ToolCallFormat

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_MAX_HELD = 1 << 16


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Call number `index` of the answer, from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as the model wrote them."""

    index: int
    text: str


Piece = Content | CallBegun | Arguments


class FoundCall(NamedTuple):
    """arguments: a JSON object as text."""

    name: str
    arguments: str


def find_tool_calls(
    text: str, tool_call_format: str, names: Collection[str]
) -> tuple[str, list[FoundCall]]:
    """The content and the calls of a whole answer.

    tool_call_format: as `Accepted` has it. names: of the functions that were offered.
    Raises: KeyError for a format that this version does not know.
    """
    parser = ToolCallParser(TOOL_CALL_FORMATS[tool_call_format], names, eager=False)
    return gathered([*parser.push(text), *parser.finish()])


def gathered(pieces: Collection[Piece]) -> tuple[str, list[FoundCall]]:
    """The content and the calls that `pieces` of one answer add up to."""
    content: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, Content):
            content.append(piece.text)
        elif isinstance(piece, CallBegun):
            names.append(piece.name)
            arguments.append([])
        else:
            arguments[piece.index].append(piece.text)
    calls = (FoundCall(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True))
    return "".join(content), list(calls)


class ToolCallParser:
    """Of one answer. What it gives, joined, is the same however the text is cut.

    eager: a call is told when its arguments begin, and they as they come. That they are JSON is
    known at their end only: one that turns out not to be, or is cut off, stays a call, as far as it
    goes. Otherwise calls are told whole, and such a one is content.
    """

    def __init__(self, form: ToolCallFormat, names: Collection[str], *, eager: bool) -> None:
        self._form = form
        self._names = frozenset(names)
        self._eager = eager
        self._step = self._in_text if form.opener else self._at_beginning
        self._rest = ""  # of the text: what may be the beginning of an opener or of a closer
        self._raw: list[str] = []  # of what may be a call, but for what was told of it
        self._num_raw = 0
        self._blank = ""  # since the last call, or the beginning: format, if a call follows
        self._blank_so_far = True
        self._expects_list = False
        self._object = CallObject((), ())
        self._arguments: list[str] = []
        self._num_read = 0  # characters of the object
        self._begun = False
        self._num_calls = 0
        self._pieces: list[Piece] = []

    @property
    def num_calls(self) -> int:
        """Told so far."""
        return self._num_calls

    def push(self, text: str) -> list[Piece]:
        """What became certain with `text`."""
        text, self._rest = self._rest + text, ""
        while text:
            text = self._step(text)
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back, once no more text comes."""
        rest, self._rest = self._rest, ""
        self._say("".join(self._raw) + rest)
        if self._blank and not self._num_calls:
            self._pieces.append(Content(self._blank))
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # Each takes the beginning of a text and returns what is left of it.

    def _at_beginning(self, text: str) -> str:
        """Of an answer in a format without openers."""
        bare = text.lstrip(_SPACE)
        self._say(text[: len(text) - len(bare)])
        if bare:
            self._step = self._after_opener if bare[0] == "{" else self._in_plain_text
        return bare

    def _in_plain_text(self, text: str) -> str:
        self._say(text)
        return ""

    def _in_text(self, text: str) -> str:
        opener = self._form.opener
        at = text.find(opener)
        if at < 0:
            kept = _length_of_beginning(text, opener)
            self._say(text[: len(text) - kept])
            self._rest = text[len(text) - kept :]
            return ""
        self._say(text[:at])
        self._keep(opener)
        self._expects_list = self._form.opens_list
        self._step = self._after_opener
        return text[at + len(opener) :]

    def _after_opener(self, text: str) -> str:
        """Or after a separator."""
        if text[0] == "{":
            self._object = CallObject(self._names, _ARGUMENTS)
            self._arguments = []
            self._num_read = 0
            self._step = self._in_object
            return text
        if text[0] == "[" and self._expects_list:
            self._expects_list = False
        elif text[0] not in _SPACE or self._num_raw > _MAX_HELD:
            return self._give_up(text)
        self._keep(text[0])
        return text[1:]

    def _in_object(self, text: str) -> str:
        for at, character in enumerate(text):
            found = self._object.push(character)
            if found is Found.MORE:
                continue
            end = at + (found is Found.DONE)
            self._read(text[:end])
            if found is Found.DONE:
                self._end_object()
            else:
                self._give_up("")
            return text[end:]
        self._read(text)
        if self._eager and self._num_raw > _MAX_HELD:
            self._give_up("")
        return ""

    def _after_object(self, text: str) -> str:
        form = self._form
        mark = form.closer
        bare = text.lstrip(_SPACE)
        space = text[: len(text) - len(bare)]
        if form.separator and bare[:1] == form.separator:
            self._keep(space + form.separator)
            self._expects_list = False
            self._step = self._after_opener
            return bare[1:]
        if mark and bare.startswith(mark):
            self._step = self._in_text
            return bare[len(mark) :]
        if len(space) <= _MAX_HELD and (not bare or (mark and mark.startswith(bare))):
            self._rest = text
            return ""
        self._step = self._in_text if form.opener else self._in_plain_text
        return text

    def _give_up(self, text: str) -> str:
        """What was kept is no call, or no more of it."""
        self._say("".join(self._raw))
        self._end_call()
        self._step = self._in_text if self._form.opener else self._in_plain_text
        return text

    def _keep(self, text: str) -> None:
        self._raw.append(text)
        self._num_raw += len(text)

    def _read(self, text: str) -> None:
        """Characters that the object has taken."""
        call, first = self._object, self._num_read
        self._num_read += len(text)
        part, after = "", ""
        if call.arguments_start >= 0:
            if self._eager and not self._begun and call.named_first:
                self._begin(call.name)
            stop = call.arguments_stop if call.arguments_stop >= 0 else self._num_read
            part = text[max(0, call.arguments_start - first) : max(0, stop - first)]
            after = text[max(0, stop - first) :]
        self._keep(after if self._begun else text)
        if self._begun and part:
            self._pieces.append(Arguments(self._num_calls - 1, part))
        elif part:
            self._arguments.append(part)

    def _end_object(self) -> None:
        if not self._begun:
            arguments = "".join(self._arguments)
            if not isinstance(read_json(arguments), dict):
                self._give_up("")
                return
            self._begin(self._object.name)
            self._pieces.append(Arguments(self._num_calls - 1, arguments))
        self._end_call()
        self._step = self._after_object

    def _begin(self, name: str) -> None:
        self._pieces.append(CallBegun(self._num_calls, name))
        self._num_calls += 1
        self._begun = True
        self._raw.clear()
        self._num_raw = 0
        self._blank, self._blank_so_far = "", True

    def _end_call(self) -> None:
        self._begun = False
        self._raw.clear()
        self._num_raw = 0

    def _say(self, text: str) -> None:
        if self._blank_so_far:
            text = self._blank + text
            self._blank_so_far = not text.strip(_SPACE) and len(text) <= _MAX_HELD
            if self._blank_so_far:
                self._blank = text
                return
            self._blank = ""
        if text:
            self._pieces.append(Content(text))


def _length_of_beginning(text: str, mark: str) -> int:
    """Of the longest end of `text` that `mark` begins with, and is longer than."""
    lengths: Iterator[int] = iter(range(min(len(text), len(mark) - 1), 0, -1))
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)
