"""What config.json says of single layers: which ones slide, which ones have no rope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataplane.models.families import Family
from dataplane.models.fields import unsupported


def sliding_windows(
    fields: Mapping[str, Any], family: Family, num_layers: int
) -> tuple[int | None, ...]:
    """Of each layer: how many tokens it attends to, its own included; None for all.

    Raises: UnsupportedModelError.
    """
    window = fields.get("sliding_window", family.sliding_window)
    slides = [False] * num_layers
    match family.sliding:
        case "always":
            slides = [True] * num_layers
        case "flag" if fields.get("use_sliding_window", False):
            full = int(fields.get("max_window_layers", 28))
            slides = _sliding_layers(fields, [layer >= full for layer in range(num_layers)])
        case "without rope":
            may_slide = bool(fields.get("use_sliding_window", False))
            ropeless = _ropeless(fields, family, num_layers)
            slides = _sliding_layers(fields, [may_slide and each for each in ropeless])
            if any(slides) and not may_slide:  # transformers' mask and its kernels disagree then
                raise unsupported("layer_types", "sliding_attention", "with use_sliding_window")
        case "types":
            slides = _sliding_layers(fields, [True] * num_layers)
        case "pattern":
            every = family.window_pattern
            if fields.get("layer_types") is None:  # beside it, it may be anything
                every = int(fields.get(family.window_pattern_field) or every)
            slides = _sliding_layers(fields, [bool((n + 1) % every) for n in range(num_layers)])
    if window is None and family.sliding == "pattern" and any(slides):
        raise unsupported("sliding_window", window, "a number, as some layers slide")
    if window is None or not any(slides):
        return (None,) * num_layers
    if int(window) < 1:
        raise unsupported("sliding_window", window, "1 or more")
    return tuple(int(window) if slide else None for slide in slides)


def _sliding_layers(fields: Mapping[str, Any], default: list[bool]) -> list[bool]:
    types = fields.get("layer_types")
    if types is None:
        return default
    if len(types) != len(default):
        raise unsupported("layer_types", types, f"one entry for each of {len(default)} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise unsupported("layer_types", kind, "full_attention or sliding_attention")
    return [kind == "sliding_attention" for kind in types]


def without_rope(
    fields: Mapping[str, Any], family: Family, windows: Sequence[int | None]
) -> list[bool]:
    """Of each layer. windows: as `sliding_windows` has them.

    Raises: UnsupportedModelError.
    """
    window = fields.get("sliding_window", family.sliding_window)
    if family.rope_slides == "ever" or (family.rope_slides and window is not None):
        return [window is None for window in windows]
    return _ropeless(fields, family, len(windows))


def _ropeless(fields: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    """As the fields say that are about this."""
    if not family.rope_interval:
        return [False] * num_layers
    has_rope = fields.get("no_rope_layers")  # by its values, 1 is a layer with rope
    if has_rope is None:
        every = fields.get("no_rope_layer_interval", family.rope_interval)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise unsupported("no_rope_layer_interval", every, "a whole number above 0")
        return [(layer + 1) % every == 0 for layer in range(num_layers)]
    if not isinstance(has_rope, list) or len(has_rope) != num_layers:
        raise unsupported("no_rope_layers", has_rope, f"0 or 1 for each of {num_layers} layers")
    for each in has_rope:
        if each not in (0, 1):
            raise unsupported("no_rope_layers", each, "0 or 1 for each layer")
    return [not each for each in has_rope]
