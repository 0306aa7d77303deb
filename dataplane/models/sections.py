"""Ropes with sections (M-RoPE, Wang et al. 2024, section 2.1): positions in time, height and width.

Each part of a head turns by one of the three. Of text all three are the token's position, so that
sections, interleaved or not, make no difference: what is left is a rope as others are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECTION_FIELDS = ("mrope_section", "mrope_interleaved")
_ROPE_FIELDS = ("rope_scaling", "rope_parameters")
_TYPE_FIELDS = ("type", "rope_type")


def without_sections(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` of a config.json, with their ropes as text knows them."""
    found = dict(fields)
    for name in _ROPE_FIELDS:
        rope = found.get(name)
        if isinstance(rope, Mapping):
            found[name] = {key: _plain(key, rope[key]) for key in rope.keys() - _SECTION_FIELDS}
    return found


def _plain(name: str, value: object) -> object:
    return "default" if name in _TYPE_FIELDS and value == "mrope" else value
