"""Calls that are a name, and a JSON object behind a mark."""

from __future__ import annotations

import re
from collections.abc import Collection

from chorale.tool_call_object import Found, Nesting
from chorale.tool_call_pieces import MAX_HELD, SPACE, CallParser
from chorale.tool_formats import NamedCalls

_NAME = re.compile(r"[ \t\r\n]{0,8}([A-Za-z0-9_-]{0,64})")
_ID = re.compile(r"[A-Za-z0-9_-]{0,64}")


class NamedCallParser(CallParser):
    """Arguments are told as the model wrote them."""

    def __init__(self, form: NamedCalls, names: Collection[str], *, eager: bool) -> None:
        super().__init__(eager=eager)
        self._form = form
        self._names = frozenset(names)
        self._name = ""
        self._object = Nesting()
        self._arguments: list[str] = []

    def _outside(self, text: str) -> str:
        text = self._find(text, self._form.opener)
        if text:
            self._keep(self._form.opener)
            self._step = self._in_head
        return text.removeprefix(self._form.opener)

    def _in_head(self, text: str) -> str:
        """Up to the mark before the arguments."""
        found = _NAME.match(text)
        assert found is not None
        rest = text[found.end() :]
        id_mark, mark = self._form.id_mark, self._form.arguments_mark
        if found[1] and rest.startswith(id_mark):
            an_id = _ID.match(rest, len(id_mark))
            assert an_id is not None
            rest, marks = rest[an_id.end() :], (mark,)
        else:
            marks = (id_mark, mark)
        if rest.startswith(mark) and found[1] in self._names:
            self._keep(text[: len(text) - len(rest)] + mark)
            self._name = found[1]
            self._step = self._before_object
            return rest.removeprefix(mark)
        if not rest or (found[1] and any(each.startswith(rest) for each in marks)):
            self._rest = text
            return ""
        return self._give_up(text)

    def _before_object(self, text: str) -> str:
        bare = text.lstrip(SPACE)
        self._keep(text[: len(text) - len(bare)])
        if not bare and self._num_raw <= MAX_HELD:
            return ""
        if bare[:1] != "{":
            return self._give_up(bare)
        if self._eager:
            self._begin(self._name)
        self._object = Nesting()
        self._arguments = []
        self._read("{")
        self._step = self._in_object
        return bare[1:]

    def _in_object(self, text: str) -> str:
        for at, character in enumerate(text):
            found = self._object.push(character)
            if found is Found.MORE:
                continue
            end = at + (found is Found.DONE)
            self._read(text[:end])
            self._end_object()
            return text[end:]
        self._read(text)
        return ""

    def _read(self, text: str) -> None:
        if self._begun:
            if text:
                self._tell(text)
            return
        self._keep(text)
        self._arguments.append(text)

    def _end_object(self) -> None:
        if not (self._begun or self._told_whole(self._name, "".join(self._arguments))):
            return
        self._end_call()
        self._step = self._outside
