"""How models write calls of functions in their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ObjectCalls(NamedTuple):
    """A call is a JSON object of a name and of arguments.

    opener: the text before the first object; empty: calls are the whole answer. opens_list: whether
    the objects are a JSON array. separator: between two objects, empty where each has an opener of
    its own. closer: after the last object. arguments: what the object calls them.
    """

    name: str
    opener: str
    opens_list: bool
    separator: str
    closer: str
    arguments: str

    @property
    def marks(self) -> tuple[str, ...]:
        """What may be one token of its own."""
        return tuple(filter(None, (self.opener, self.closer)))


class NamedCalls(NamedTuple):
    """A call is an opener, a name, and its arguments as a JSON object behind a mark; between name
    and mark there may be an id behind a mark of its own."""

    name: str
    opener: str
    id_mark: str
    arguments_mark: str

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opener, self.id_mark, self.arguments_mark


class TaggedCalls(NamedTuple):
    """A call is a tag with its name, and in it one for each argument, whose value is plain text
    where the function's schema says so, and JSON else. opener, closer: around it; models forget
    them."""

    name: str
    opener: str
    closer: str

    @property
    def marks(self) -> tuple[str, ...]:
        return self.opener, self.closer


ToolCallFormat = ObjectCalls | NamedCalls | TaggedCalls

TOOL_CALL_FORMATS: Mapping[str, ToolCallFormat] = {
    each.name: each
    for each in (
        ObjectCalls("hermes", "<tool_call>", False, "", "</tool_call>", "arguments"),
        ObjectCalls("llama3_json", "", False, ";", "", "parameters"),
        ObjectCalls("mistral", "[TOOL_CALLS]", True, ",", "]", "arguments"),
        NamedCalls("mistral_args", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        TaggedCalls("qwen3_coder", "<tool_call>", "</tool_call>"),
    )
}
"""By name."""
