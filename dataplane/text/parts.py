"""Chat templates of models that see may take a message's content as a list of parts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]

_PROBE = "chorale probe of the template"


def as_parts(messages: Messages) -> list[Mapping[str, Any]]:
    """With each text as its message's only part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def wants_parts(render: Callable[[Messages], str]) -> bool:
    """Whether the template shows a text in parts, and not one that stands alone. Where it is not
    sure it takes texts, as most do."""
    message = [{"role": "user", "content": _PROBE}]
    return not _shows(render, message) and _shows(render, as_parts(message))


def _shows(render: Callable[[Messages], str], messages: Messages) -> bool:
    try:
        return _PROBE in render(messages)
    except Exception:  # a template is code: it may raise anything
        return False
