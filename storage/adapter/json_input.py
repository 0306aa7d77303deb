"""JSON from strangers: one object, strict UTF-8, bounded depth, no duplicates, no NaN."""

from __future__ import annotations

import json
import math
from typing import Any, cast

from storage.errors import AdapterFormatError, excerpt

_MAX_DIGITS = 1000


def load_object(
    data: bytes, *, what: str, max_depth: int, max_marks: int, error: type[AdapterFormatError]
) -> dict[str, Any]:
    """Parse `data` into a dict. The caller has bounded its length.

    max_marks: most commas and opening brackets. Each may begin a value, of a hundred bytes in
    memory, and no other thread runs while the values are made.
    Raises: `error`, with a message that begins with `what`.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > max_marks:
        raise error(f"{what} holds too many values: more than {max_marks} commas and brackets")
    try:
        parsed: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
        _check_values(parsed, max_depth)
    except RecursionError:
        raise error(f"{what} is nested deeper than {max_depth} levels") from None
    except ValueError as problem:
        raise error(f"{what} is not valid JSON: {str(problem)[:200]}") from None
    if not isinstance(parsed, dict):
        raise error(f"{what} must be a JSON object, not {excerpt(parsed)}")
    return cast("dict[str, Any]", parsed)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {excerpt(key, 100)}")
        result[key] = value
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:  # what they take to read grows with the square of their number
        raise ValueError(f"an integer of {len(text)} digits is out of range")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {excerpt(text, 40)} is out of range")
    return value


def _check_values(root: object, max_depth: int) -> None:
    stack: list[tuple[object, int]] = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > max_depth:
            raise ValueError(f"nested deeper than {max_depth} levels")
        if isinstance(value, dict):
            for key, item in cast("dict[str, object]", value).items():
                key.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
                stack.append((item, depth + 1))
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in cast("list[object]", value))
        elif isinstance(value, str):
            value.encode("utf-8")
