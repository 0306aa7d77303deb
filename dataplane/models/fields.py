"""Single fields of config.json: what they may be, and what is raised otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dataplane.errors import UnsupportedModelError

MAX_SIZE = 1 << 24
"""Far beyond any model's: what is made of it before a checkpoint contradicts it is small."""


def unsupported(field: str, value: object, wanted: str) -> UnsupportedModelError:
    """config.json says something that is not served exactly."""
    shown = str(value)[:200]
    return UnsupportedModelError(
        "MODEL_UNSUPPORTED",
        f"config.json: {field} is {shown}; supported: {wanted}",
        {"field": field, "value": shown},
    )


def count(name: str, value: object, most: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise unsupported(name, value, f"a whole number from 1 to {most}")
    return value


def positive(name: str, value: float | None) -> float:
    if value is None or not 0 < float(value) < math.inf:
        raise unsupported(name, value, "a number above 0")
    return float(value)


def epsilon(name: str, value: float) -> float:
    if not 0 <= float(value) < math.inf:
        raise unsupported(name, value, "a number, 0 or more")
    return float(value)


def flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise unsupported(name, value, "true or false")
    return bool(value)


def soft_cap(
    fields: Mapping[str, Any], name: str, default: float | None, *, known: bool
) -> float | None:
    cap = fields.get(name, default)
    if cap is None:
        return None
    if not known:
        raise unsupported(name, cap, "absent")
    return positive(name, cap)
