"""Parts of a body that have no model, as what they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast


def object_of(value: object) -> Mapping[str, Any]:
    """`value`, or nothing when it is no object."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def list_of(value: object) -> list[object]:
    """`value`, or nothing when it is no list."""
    return cast("list[object]", value) if isinstance(value, list) else []


def text_of(value: object, part: Callable[[object], str]) -> str | None:
    """A text, or the texts of a list's parts; None when it is neither."""
    if isinstance(value, str):
        return value
    return "".join(map(part, cast("list[object]", value))) if isinstance(value, list) else None
