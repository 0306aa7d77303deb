"""Bounds on what an untrusted adapter may ask of us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Sizes in bytes. `max_rank` may be lowered but the kernels stop at 256."""

    max_config_bytes: int = 1 << 20
    max_weights_bytes: int = 4 << 30
    max_header_bytes: int = 16 << 20
    max_tensors: int = 16_384
    max_rank: int = 256


DEFAULT_LIMITS = AdapterLimits()
