"""How models write calls of functions in their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ToolCallFormat(NamedTuple):
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


TOOL_CALL_FORMATS: Mapping[str, ToolCallFormat] = {
    each.name: each
    for each in (
        ToolCallFormat("hermes", "<tool_call>", False, "", "</tool_call>", "arguments"),
        ToolCallFormat("llama3_json", "", False, ";", "", "parameters"),
        ToolCallFormat("mistral", "[TOOL_CALLS]", True, ",", "]", "arguments"),
    )
}
"""By name."""
