"""Calls of functions in the text of an answer, told from it piece by piece.

What is no call is content: what names no function that was offered, whose arguments are no JSON
object, and what stands around calls but for white space. No text is lost.
"""

from __future__ import annotations

from collections.abc import Collection

from chorale.tool_call_pieces import CallParser, FoundCall, gathered
from chorale.tool_calls_as_objects import ObjectCallParser
from chorale.tool_calls_by_name import NamedCallParser
from chorale.tool_calls_in_tags import TaggedCallParser
from chorale.tool_formats import TOOL_CALL_FORMATS, NamedCalls, ObjectCalls, ToolCallFormat

__all__ = ["FoundCall", "find_tool_calls", "tool_call_parser"]


def find_tool_calls(
    text: str, tool_call_format: str, names: Collection[str]
) -> tuple[str, list[FoundCall]]:
    """The content and the calls of a whole answer.

    tool_call_format, names: as `Accepted` and `tool_call_parser` have them.
    Raises: KeyError for a format that this version does not know.
    """
    parser = tool_call_parser(TOOL_CALL_FORMATS[tool_call_format], names, eager=False)
    return gathered([*parser.push(text), *parser.finish()])


def tool_call_parser(form: ToolCallFormat, names: Collection[str], *, eager: bool) -> CallParser:
    """names: of the functions that were offered; a mapping to the schemas of their parameters tells
    texts from numbers and the like where calls have arguments in tags. eager: as in `CallParser`.
    """
    if isinstance(form, ObjectCalls):
        return ObjectCallParser(form, names, eager=eager)
    if isinstance(form, NamedCalls):
        return NamedCallParser(form, names, eager=eager)
    return TaggedCallParser(form, names, eager=eager)
