"""Rotary position embeddings: what config.json says of them, and their tables.

Scalings: `linear` (position interpolation, Chen et al. 2023), `yarn` (Peng et al. 2023, section 3),
`llama3` (Llama 3.1: by wavelength), `longrope` (Ding et al. 2024). `dynamic` scales only past
max_position_embeddings, which is the longest context that is served, so it equals `default`.
`longrope` switches all positions of a sequence to other factors when the sequence outgrows the
original context; cached keys would then be wrong, so that context is the longest served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dataplane.models.families import Family
from dataplane.models.fields import unsupported

_KNOWN_FIELDS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "short_factor",
        "long_factor",
        "finetuned",
    }
)


@dataclass(frozen=True)
class Rope:
    """rotary_dim: leading elements of each head that are rotated; the others pass."""

    rotary_dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    attention_factor: float = 1.0  # multiplies cos and sin
    original_context: int = 0
    low: float = 0.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 0.0  # llama3: high_freq_factor; yarn: beta_fast
    truncate: bool = True  # yarn: whole dimensions bound the ramp
    divisors: tuple[float, ...] = ()  # longrope: short_factor

    def tables(
        self, max_context: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [max_context, rotary_dim] each, angles computed in float32."""
        angles = torch.outer(torch.arange(max_context, dtype=torch.float32), self._frequencies())
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cos.to(device, dtype), sin.to(device, dtype)

    def _frequencies(self) -> torch.Tensor:
        """[rotary_dim / 2] float32: radians per position."""
        if self.kind == "none":
            return torch.zeros(self.rotary_dim // 2)
        exponent = torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.rotary_dim
        wavelengths = self.theta**exponent  # over 2 pi
        plain = 1.0 / wavelengths
        match self.kind:
            case "linear":
                return plain / self.factor
            case "longrope":
                return 1.0 / (torch.tensor(self.divisors) * wavelengths)
            case "llama3":
                turns = self.original_context / (2 * math.pi / plain)
                smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
                return (1 - smooth) * plain / self.factor + smooth * plain
            case "yarn":
                keep = self._yarn_extrapolated()
                return 1.0 / (self.factor * wavelengths) * (1 - keep) + plain * keep
            case _:
                return plain

    def _yarn_extrapolated(self) -> torch.Tensor:
        """[rotary_dim / 2]: 1 where a dimension turns often enough to stay as it is."""

        def dimension(turns: float) -> float:
            ratio = self.original_context / (turns * 2 * math.pi)
            return self.rotary_dim * math.log(ratio) / (2 * math.log(self.theta))

        first, last = dimension(self.high), dimension(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_dim - 1)
        width = last - first or 0.001
        ramp = (torch.arange(self.rotary_dim // 2, dtype=torch.float32) - first) / width
        return 1 - ramp.clamp(0, 1)


def no_rope(rotary_dim: int) -> Rope:
    """That of layers without one: it turns nothing, so that they need no kernels of their own."""
    return Rope(rotary_dim, 1.0, "none")


class RopeReader:
    """Reads ropes from config.json's fields; what is not served exactly is refused."""

    def __init__(self, fields: Mapping[str, Any], family: Family, head_dim: int) -> None:
        self._fields = fields
        self._family = family
        self._head_dim = head_dim
        self._max_context = int(
            fields.get("max_position_embeddings", family.max_position_embeddings)
        )

    def read(self) -> tuple[Rope, Rope]:
        """The ropes of full and of sliding layers.

        Raises: UnsupportedModelError.
        """
        fields, local_theta = self._fields, self._family.local_rope_theta
        # The older name is the one that transformers prefers when a file has both.
        entry: object = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
        if not isinstance(entry, Mapping):
            raise unsupported("rope_parameters", entry, "an object")
        if local_theta is None:
            rope = self._rope(entry, "rope_parameters", self._family.rope_theta)
            return rope, rope
        if entry and entry is fields.get("rope_parameters"):
            if not entry.keys() & {"full_attention", "sliding_attention"}:
                raise unsupported("rope_parameters", entry, "objects by layer type")
        elif entry and fields.get("rope_parameters"):
            raise unsupported("rope_scaling", entry, "absent beside rope_parameters")
        elif entry.get("type", "default") != "default" and "rope_type" not in entry:
            # transformers merges it into a default rope, whose rope_type wins.
            raise unsupported("rope_scaling.type", entry["type"], "rope_type in its place")
        older_field = self._family.local_theta_field
        local_theta = float(fields.get(older_field) or local_theta)
        full: object = entry
        local: object = {}
        if entry.keys() & {"full_attention", "sliding_attention"}:
            full = entry.get("full_attention") or {}
            local = entry.get("sliding_attention") or local
            if extra := entry.keys() - {"full_attention", "sliding_attention"}:
                raise unsupported(f"rope_parameters.{min(extra)}", entry[min(extra)], "absent")
        if not isinstance(full, Mapping) or not isinstance(local, Mapping):
            raise unsupported("rope_parameters", entry, "objects by layer type")
        for each in (full, local):
            if not each.get("truncate", True):  # transformers does not look for it there
                raise unsupported("rope_parameters.truncate", False, "true by layer type")
        if not older_field and not local.get("rope_theta"):
            theta = float(fields.get("rope_theta") or local_theta)
            if theta != local_theta:  # versions of transformers disagree on what it is of
                wanted = f"{local_theta:g}, or rope_parameters by layer type"
                raise unsupported("rope_theta", theta, wanted)
        return (
            self._rope(full, "rope_parameters.full_attention", self._family.rope_theta),
            self._rope(local, "rope_parameters.sliding_attention", local_theta, local=True),
        )

    def _rope(
        self, entry: Mapping[str, Any], label: str, default_theta: float, *, local: bool = False
    ) -> Rope:
        fields, family = self._fields, self._family
        for name, value in entry.items():
            if name not in _KNOWN_FIELDS and value is not None:
                raise unsupported(f"{label}.{name}", value, "absent")
        kind = str(entry.get("rope_type") or entry.get("type") or "default")
        kind = dict(family.rope_aliases).get(kind, kind)
        if kind not in family.rope_types:
            raise unsupported(f"{label}.rope_type", kind, ", ".join(sorted(family.rope_types)))
        theta = entry.get("rope_theta") or (None if local else fields.get("rope_theta"))
        part = entry.get("partial_rotary_factor") or fields.get("partial_rotary_factor")
        part = part or family.partial_rotary_factor
        if float(part) != 1.0 and not family.partial_rotary:
            raise unsupported(f"{label}.partial_rotary_factor", part, "1.0")
        rotary_dim = int(self._head_dim * float(part))
        if rotary_dim % 2 or not 0 < rotary_dim <= self._head_dim:
            raise unsupported(f"{label}.partial_rotary_factor", part, "an even number of elements")
        rope = _Entry(entry, label)
        theta = float(theta or default_theta)
        if not 1 < theta < math.inf:
            raise unsupported(f"{label}.rope_theta", theta, "a number above 1")
        if kind in ("default", "dynamic"):
            return Rope(rotary_dim, theta)
        if kind == "linear":
            return Rope(rotary_dim, theta, kind, factor=rope.number("factor"))
        original = (
            fields.get("original_max_position_embeddings")
            or family.original_context
            or entry.get("original_max_position_embeddings")
            or self._max_context
        )
        original = int(original)
        if original < 2:
            raise unsupported("original_max_position_embeddings", original, "2 or more")
        if kind == "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise unsupported(f"{label}.high_freq_factor", high, f"more than {low}")
            return Rope(rotary_dim, theta, kind, rope.number("factor"), 1.0, original, low, high)
        factor = rope.optional("factor") or self._max_context / original
        if kind == "longrope":
            divisors = rope.numbers("short_factor", rotary_dim // 2)
            scale = rope.optional("attention_factor") or _longrope_attention(factor, original)
            return Rope(rotary_dim, theta, kind, factor, scale, original, divisors=divisors)
        return Rope(
            rotary_dim,
            theta,
            kind,
            factor,
            rope.optional("attention_factor") or _yarn_attention(rope, factor),
            original,
            rope.optional("beta_slow") or 1.0,
            rope.optional("beta_fast") or 32.0,
            truncate=bool(entry.get("truncate", True)),
        )


class _Entry:
    """Numbers of one rope object, checked."""

    def __init__(self, entry: Mapping[str, Any], label: str) -> None:
        self._entry = entry
        self._label = label

    def number(self, name: str) -> float:
        value = self._entry.get(name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise unsupported(f"{self._label}.{name}", value, "a number above 0")
        return float(value)

    def optional(self, name: str) -> float | None:
        return None if self._entry.get(name) is None else self.number(name)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        values = self._entry.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise unsupported(f"{self._label}.{name}", values, f"a list of {count} numbers")
        if not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
            raise unsupported(f"{self._label}.{name}", values, "numbers above 0")
        return tuple(float(value) for value in values)


def _longrope_attention(factor: float, original: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_attention(rope: _Entry, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above, below = rope.optional("mscale"), rope.optional("mscale_all_dim")
    return scale(above) / scale(below) if above and below else scale(1.0)
