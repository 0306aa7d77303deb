"""What an answer's text turns out to be, piece by piece: content, and calls of functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from chorale.tool_call_object import read_json

SPACE = " \t\r\n"
MAX_HELD = 1 << 16


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
    """More of a call's arguments, a JSON object as text."""

    index: int
    text: str


Piece = Content | CallBegun | Arguments


class FoundCall(NamedTuple):
    """arguments: a JSON object as text."""

    name: str
    arguments: str


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


class CallParser(ABC):
    """Of one answer. What it gives, joined, is the same however the text is cut.

    eager: a call is told when its arguments begin, and they as they come. That they are JSON is
    known at their end only: one that turns out not to be, or is cut off, stays a call, as far as it
    goes. Otherwise calls are told whole, and such a one is content.
    """

    def __init__(self, *, eager: bool) -> None:
        self._eager = eager
        # Takes the beginning of a text and returns what is left of it.
        self._step: Callable[[str], str] = self._outside
        self._rest = ""  # of the text: what is not decided yet
        self._raw: list[str] = []  # of what may be a call, but for what was told of it
        self._num_raw = 0
        self._blank = ""  # since the last call, or the beginning: format, if a call follows
        self._blank_so_far = True
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

    @abstractmethod
    def _outside(self, text: str) -> str:
        """The step where no call has begun."""

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _find(self, text: str, *openers: str) -> str:
        """Says what is before the first of them, and returns the rest, which begins with it; or ""
        where there is none yet."""
        found = [at for opener in openers if (at := text.find(opener)) >= 0]
        if found:
            self._say(text[: min(found)])
            return text[min(found) :]
        kept = max(length_of_beginning(text, opener) for opener in openers)
        self._say(text[: len(text) - kept])
        self._rest = text[len(text) - kept :]
        return ""

    def _give_up(self, text: str) -> str:
        """What was kept is no call, or no more of it."""
        self._say("".join(self._raw))
        self._end_call()
        self._step = self._outside
        return text

    def _keep(self, text: str) -> None:
        self._raw.append(text)
        self._num_raw += len(text)

    def _begin(self, name: str) -> None:
        self._pieces.append(CallBegun(self._num_calls, name))
        self._num_calls += 1
        self._begun = True
        self._forget()
        self._blank, self._blank_so_far = "", True

    def _tell(self, text: str) -> None:
        """More arguments, of the call that has begun."""
        self._pieces.append(Arguments(self._num_calls - 1, text))

    def _told_whole(self, name: str, arguments: str) -> bool:
        """Tells a call that was kept to its end; it is given up where its arguments turn out to be
        no JSON object."""
        if not isinstance(read_json(arguments), dict):
            self._give_up("")
            return False
        self._begin(name)
        self._tell(arguments)
        return True

    def _end_call(self) -> None:
        self._begun = False
        self._forget()

    def _forget(self) -> None:
        """What was kept is told as a call."""
        self._raw.clear()
        self._num_raw = 0

    def _say(self, text: str) -> None:
        if self._blank_so_far:
            text = self._blank + text
            self._blank_so_far = not text.strip(SPACE) and len(text) <= MAX_HELD
            if self._blank_so_far:
                self._blank = text
                return
            self._blank = ""
        if text:
            self._pieces.append(Content(text))


def length_of_beginning(text: str, mark: str) -> int:
    """Of the longest end of `text` that `mark` begins with, and is longer than."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)
