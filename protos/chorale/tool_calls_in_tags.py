"""Calls that are tags: one with the function's name, and in it one for each argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

from chorale.tool_call_object import Strings
from chorale.tool_call_pieces import MAX_HELD, SPACE, CallParser, length_of_beginning
from chorale.tool_call_values import TEXT, as_json, kinds_of, quoted
from chorale.tool_formats import TaggedCalls

_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_MAX_NAME = 256  # characters of a tag
_IN_BRACKETS = frozenset({"array", "object"})


class TaggedCallParser(CallParser):
    """Arguments are told as JSON. Values that are texts come as they are written, others whole. Of
    those with one name the last counts, as in JSON."""

    def __init__(self, form: TaggedCalls, names: Collection[str], *, eager: bool) -> None:
        super().__init__(eager=eager)
        self._form = form
        self._names = frozenset(names)
        self._schemas: Mapping[str, Any] = names if isinstance(names, Mapping) else {}
        self._name = ""
        self._arguments: list[str] = []  # as JSON, not told yet
        self._has_arguments = False  # this call
        self._kinds: frozenset[str] = frozenset()
        self._value: list[str] = []
        self._is_first = False  # nothing of the value has come
        self._strings: Strings | None = None  # of the value, where it may be JSON in brackets

    def _outside(self, text: str) -> str:
        text = self._find(text, self._form.opener, _FUNCTION)
        if not text.startswith(self._form.opener):
            self._step = self._in_name if text else self._outside
            return text
        self._keep(self._form.opener)
        self._step = self._after_opener
        return text.removeprefix(self._form.opener)

    def _after_opener(self, text: str) -> str:
        bare = self._past_space(text)
        if bare.startswith(_FUNCTION):
            self._step = self._in_name
            return bare
        if _FUNCTION.startswith(bare) and self._num_raw <= MAX_HELD:
            self._rest = bare
            return ""
        return self._give_up(bare)

    def _in_name(self, text: str) -> str:
        """From the function's tag on."""
        end = text.find(">", 0, _MAX_NAME)
        if end < 0 and len(text) < _MAX_NAME:
            self._rest = text
            return ""
        self._name = text[len(_FUNCTION) : max(end, 0)].strip()
        if self._name not in self._names:
            self._keep(_FUNCTION)
            return self._give_up(text.removeprefix(_FUNCTION))
        self._keep(text[: end + 1])
        self._arguments, self._has_arguments = [], False
        self._step = self._in_function
        return text[end + 1 :]

    def _in_function(self, text: str) -> str:
        bare = self._past_space(text)
        if bare.startswith(_END_FUNCTION):
            self._keep(_END_FUNCTION)
            self._add("}" if self._has_arguments else "{}")
            self._end()
            return bare.removeprefix(_END_FUNCTION)
        end = bare.find(">", 0, _MAX_NAME)
        if not bare.startswith(_PARAMETER):
            can_be = any(each.startswith(bare) for each in (_PARAMETER, _END_FUNCTION))
        else:
            can_be = end < 0 and len(bare) < _MAX_NAME
            name = bare[len(_PARAMETER) : max(end, 0)].strip()
            if name:
                self._keep(bare[: end + 1])
                self._begin_value(name)
                return bare[end + 1 :]
        if can_be:
            self._rest = bare
            return ""
        return self._give_up(bare)

    def _begin_value(self, name: str) -> None:
        separator = ", " if self._has_arguments else "{"
        self._has_arguments = True
        self._kinds = kinds_of(self._schemas.get(self._name), name)
        self._strings = None if self._kinds.isdisjoint(_IN_BRACKETS) else Strings()
        self._value, self._is_first = [f"{separator}{quoted(name)}: "], True
        if self._kinds == TEXT:
            self._add(f'{self._value.pop()}"')
        self._step = self._in_value

    def _in_value(self, text: str) -> str:
        """Without the line's end after the first tag, and the one before the last."""
        if self._is_first and text[0] == "\n" and len(text) > 1:
            self._keep("\n")
            self._is_first = False
            return text[1:]
        end = self._end_of_value(text)
        if end < 0:
            lengths = (length_of_beginning(text, f"{each}{_END_PARAMETER}") for each in ("", "\n"))
            kept = len(text) - max(lengths)
            self._rest = text[kept:]
            self._read(text[:kept])
            return ""
        self._read(text[:end].removesuffix("\n"))
        self._keep(text[len(text[:end].removesuffix("\n")) : end] + _END_PARAMETER)
        if self._kinds == TEXT:
            self._add('"')
        else:
            self._add(self._value[0] + as_json("".join(self._value[1:]), self._kinds))
        self._step = self._in_function
        return text[end + len(_END_PARAMETER) :]

    def _end_of_value(self, text: str) -> int:
        """-1: it is not in `text`. The tag may stand in a string of JSON, where it ends nothing."""
        end = text.find(_END_PARAMETER)
        if self._strings is None or end < 0:
            return end
        strings, seen = copy(self._strings), 0
        while end >= 0:
            strings.push(text[seen:end])
            if not strings.is_open:
                break
            seen, end = end, text.find(_END_PARAMETER, end + 1)
        return end

    def _read(self, text: str) -> None:
        if not text:
            return
        self._is_first = False
        if self._strings is not None:
            self._strings.push(text)
        self._keep(text)
        if self._kinds == TEXT:
            self._add(quoted(text)[1:-1])
        else:
            self._value.append(text)

    def _add(self, arguments: str) -> None:
        """What was kept is in them."""
        if not self._eager:
            self._arguments.append(arguments)
            return
        if not self._begun:
            self._begin(self._name)
        self._forget()
        self._tell(arguments)

    def _end(self) -> None:
        if not self._begun:
            self._begin(self._name)
            self._tell("".join(self._arguments))
        self._end_call()
        self._step = self._after_function

    def _after_function(self, text: str) -> str:
        bare = text.lstrip(SPACE)
        closer = self._form.closer
        if bare.startswith(closer):
            self._step = self._outside
            return bare.removeprefix(closer)
        if closer.startswith(bare) and len(text) <= MAX_HELD:
            self._rest = text
            return ""
        self._step = self._outside
        return text

    def _past_space(self, text: str) -> str:
        bare = text.lstrip(SPACE)
        self._keep(text[: len(text) - len(bare)])
        return bare
