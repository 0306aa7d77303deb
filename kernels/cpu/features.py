"""What this processor can do."""

from __future__ import annotations

from functools import cache

from llvmlite import binding


@cache
def has(feature: str) -> bool:
    """feature: LLVM's name of it, as "avx512f"."""
    return bool(binding.get_host_cpu_features().get(feature, False))


@cache
def name() -> str:
    """LLVM's name of this kind of processor, as "znver5" or "sapphirerapids"."""
    return binding.get_host_cpu_name()
