"""The JSON of one call, looked through character by character."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum, auto
from typing import Any

MAX_DEPTH = 64
_SPACE = " \t\r\n"
_CLOSER_OF = {"{": "}", "[": "]"}
_NOTES = frozenset({"type", "id"})  # that some models write beside name and arguments


class Found(Enum):
    MORE = auto()
    """The object goes on."""
    DONE = auto()
    """That was its last character."""
    BROKEN = auto()
    """That character makes it no call."""


class Nesting:
    """Takes the characters of a JSON object after its `{`, to its end; of its form, it looks at
    texts and brackets alone."""

    def __init__(self) -> None:
        self._closers = ["}"]  # of open objects and arrays
        self._in_string = self._escaped = False

    def push(self, character: str) -> Found:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in _CLOSER_OF:
            self._closers.append(_CLOSER_OF[character])
            if len(self._closers) > MAX_DEPTH:
                return Found.BROKEN
        elif character in "}]":
            if self._closers.pop() != character:
                return Found.BROKEN
            if not self._closers:
                return Found.DONE
        return Found.MORE


class Strings:
    """Takes the characters of a value that may be JSON in brackets.

    is_open: whether they end within one of its strings. One that goes beyond a line's end is no
    JSON, and nor is the value.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._in_brackets: bool | None = None
        self._escaped = False

    def push(self, text: str) -> None:
        if self._in_brackets is None and (bare := text.lstrip(_SPACE)):
            self._in_brackets = bare[0] in _CLOSER_OF
        for character in text if self._in_brackets else "":
            if character == "\n":
                self._in_brackets = not self.is_open
                if self.is_open:
                    self.is_open = False
                    return
            elif self._escaped:
                self._escaped = False
            elif character == '"':
                self.is_open = not self.is_open
            elif character == "\\":
                self._escaped = self.is_open


class _At(Enum):
    BEGINNING = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    AFTER_VALUE = auto()


class CallObject:
    """Takes the object's characters in order, from its `{`. A call names a function of `names`, and
    its arguments are an object; beside them only texts under `type` and `id` may stand.

    name: of the function, once it is known. arguments: how many characters before their begin and
    end, -1 while not known. named_first: whether the name was known when they began.
    """

    def __init__(self, names: Collection[str], arguments_keys: Collection[str]) -> None:
        self.name = ""
        self.arguments_start = self.arguments_stop = -1
        self.named_first = False
        self._names = names
        self._arguments_keys = arguments_keys
        self._at = _At.BEGINNING
        self._length = 0
        self._keys: set[str] = set()
        self._key = ""
        self._token: list[str] = []  # of a key or a value that is no arguments
        self._in_string = self._escaped = False
        self._value: Nesting | None = None  # of the arguments, while they last

    def push(self, character: str) -> Found:
        if self._value is not None:
            found = self._in_arguments(self._value, character)
        else:
            found = self._in_text(character) if self._in_string else self._between(character)
        self._length += 1
        return found

    def _between(self, character: str) -> Found:
        if character in _SPACE and self._at is not _At.BEGINNING:
            return Found.MORE
        match self._at, character:
            case _At.BEGINNING, "{":
                self._at = _At.FIRST_KEY
            case ((_At.FIRST_KEY | _At.KEY), '"'):
                self._in_string = True
                self._token = ['"']
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.VALUE, _:
                return self._begin_value(character)
            case _At.AFTER_VALUE, ",":
                self._at = _At.KEY
            case _At.AFTER_VALUE, "}":
                return Found.DONE if self.name and self.arguments_stop >= 0 else Found.BROKEN
            case _:
                return Found.BROKEN
        return Found.MORE

    def _begin_value(self, character: str) -> Found:
        if self._key in self._arguments_keys:
            if character != "{" or self.arguments_start >= 0:
                return Found.BROKEN
            self.arguments_start = self._length
            self.named_first = bool(self.name)
            self._value = Nesting()
            return Found.MORE
        if character != '"':
            return Found.BROKEN
        self._in_string = True
        self._token = ['"']
        return Found.MORE

    def _in_arguments(self, value: Nesting, character: str) -> Found:
        found = value.push(character)
        if found is not Found.DONE:
            return found
        self._value = None
        self._at = _At.AFTER_VALUE
        self.arguments_stop = self._length + 1
        return Found.MORE

    def _in_text(self, character: str) -> Found:
        self._token.append(character)
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            return self._end_text()
        return Found.MORE

    def _end_text(self) -> Found:
        text = read_json("".join(self._token))
        if not isinstance(text, str):
            return Found.BROKEN
        if self._at is _At.VALUE:
            self._at = _At.AFTER_VALUE
            if self._key == "name":
                if text not in self._names:
                    return Found.BROKEN
                self.name = text
            return Found.MORE
        known = text == "name" or text in self._arguments_keys or text in _NOTES
        if not known or text in self._keys:
            return Found.BROKEN
        self._keys.add(text)
        self._key = text
        self._at = _At.COLON
        return Found.MORE


def read_json(text: str) -> Any:
    """The value; None for what is no JSON, and for null."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
