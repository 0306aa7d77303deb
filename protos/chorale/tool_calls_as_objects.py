"""Calls that are JSON objects of a name and of arguments."""

from __future__ import annotations

from collections.abc import Collection

from chorale.tool_call_object import CallObject, Found
from chorale.tool_call_pieces import MAX_HELD, SPACE, CallParser
from chorale.tool_formats import ObjectCalls

_ARGUMENTS = ("arguments", "parameters")


class ObjectCallParser(CallParser):
    """Arguments are told as the model wrote them."""

    def __init__(self, form: ObjectCalls, names: Collection[str], *, eager: bool) -> None:
        super().__init__(eager=eager)
        self._form = form
        self._names = frozenset(names)
        if not form.opener:
            self._step = self._at_beginning
        self._expects_list = False
        self._object = CallObject((), ())
        self._arguments: list[str] = []
        self._num_read = 0  # characters of the object

    def _at_beginning(self, text: str) -> str:
        """Of an answer in a format without openers."""
        bare = text.lstrip(SPACE)
        self._say(text[: len(text) - len(bare)])
        if bare:
            self._step = self._after_opener if bare[0] == "{" else self._outside
        return bare

    def _outside(self, text: str) -> str:
        opener = self._form.opener
        if not opener:
            self._say(text)
            return ""
        text = self._find(text, opener)
        if text:
            self._keep(opener)
            self._expects_list = self._form.opens_list
            self._step = self._after_opener
        return text.removeprefix(opener)

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
        elif text[0] not in SPACE or self._num_raw > MAX_HELD:
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
        if self._eager and self._num_raw > MAX_HELD:
            self._give_up("")
        return ""

    def _after_object(self, text: str) -> str:
        form = self._form
        mark = form.closer
        bare = text.lstrip(SPACE)
        space = text[: len(text) - len(bare)]
        if form.separator and bare[:1] == form.separator:
            self._keep(space + form.separator)
            self._expects_list = False
            self._step = self._after_opener
            return bare[1:]
        if mark and bare.startswith(mark):
            self._step = self._outside
            return bare[len(mark) :]
        if len(space) <= MAX_HELD and (not bare or (mark and mark.startswith(bare))):
            self._rest = text
            return ""
        self._step = self._outside
        return text

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
            self._tell(part)
        elif part:
            self._arguments.append(part)

    def _end_object(self) -> None:
        if not (self._begun or self._told_whole(self._object.name, "".join(self._arguments))):
            return
        self._end_call()
        self._step = self._after_object
