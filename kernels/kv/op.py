"""Rotary embedding and KV writes."""

from kernels.kv.naive import apply_rope, write_kv

__all__ = ["apply_rope", "write_kv"]
