"""Which format of calls a chat template teaches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from chorale.tool_formats import TOOL_CALL_FORMATS, ToolCallFormat

ToolCallFormatName = Literal[
    "auto", "hermes", "llama3_json", "mistral", "mistral_args", "qwen3_coder"
]

_LLAMA = re.compile(
    r"""\{\s*\\?["']name\\?["']\s*:\s*function name\s*,\s*\\?["']parameters\\?["']"""
)
# Of formats that use the same marks for something else.
_OTHERS = ("<function=", "<arg_key>", "[CALL_ID]")


def tool_call_format(name: ToolCallFormatName, templates: Iterable[str]) -> ToolCallFormat | None:
    """The format of that name; for "auto" the one that `templates`' text tells, None where it tells
    none that is known."""
    if name != "auto":
        return TOOL_CALL_FORMATS[name]
    text = "\n".join(templates)
    if "[TOOL_CALLS]" in text and "[ARGS]" in text:
        return TOOL_CALL_FORMATS["mistral_args"]
    if "<function=" in text and "<parameter=" in text:
        return TOOL_CALL_FORMATS["qwen3_coder"]
    if any(mark in text for mark in _OTHERS):
        return None
    if "<tool_call>" in text and "arguments" in text:
        return TOOL_CALL_FORMATS["hermes"]
    if "[TOOL_CALLS]" in text:
        return TOOL_CALL_FORMATS["mistral"]
    return TOOL_CALL_FORMATS["llama3_json"] if _LLAMA.search(text) else None
