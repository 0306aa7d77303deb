"""Bounds on what an untrusted adapter may ask of us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Sizes in bytes. `max_rank` may be lowered but the kernels stop at 256."""

    max_config_bytes: int = 1 << 20
    max_weights_bytes: int = 4 << 30
    max_header_bytes: int = 16 << 20
    max_tensors: int = 40_960  # of 128 experts in 48 layers, each by itself: 36,864
    max_rank: int = 256


DEFAULT_LIMITS = AdapterLimits()
