"""Granite's four factors, as config.json gives them.

The residual stream is kept divided by `residual`: a layer's outputs are then added as they are,
LoRA included, and norms do not see the difference once their epsilon is divided by its square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dataplane.models.families import Family
from dataplane.models.fields import unsupported


class Multipliers(NamedTuple):
    embedding: float = 1.0
    residual: float = 1.0  # of the outputs of attention and of the MLP
    attention: float | None = None  # of q · k; None: as other families
    logits: float = 1.0  # they are divided by it


def read_multipliers(fields: Mapping[str, Any], family: Family) -> Multipliers:
    """Raises: UnsupportedModelError."""
    if not family.multipliers:
        return Multipliers()
    return Multipliers(
        _factor(fields, "embedding_multiplier"),
        _factor(fields, "residual_multiplier"),
        _factor(fields, "attention_multiplier"),
        _factor(fields, "logits_scaling"),
    )


def _factor(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name, 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise unsupported(name, value, "a number above 0")
    return float(value)
