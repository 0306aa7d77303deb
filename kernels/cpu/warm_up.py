"""Compiling the CPU kernels before the first request."""

from __future__ import annotations

import torch

from kernels.attention import cpu as attention
from kernels.attention import cpu_prefill
from kernels.cpu.floats import SUPPORTED_DTYPES
from kernels.experts import cpu as experts
from kernels.fused import cpu as fused
from kernels.kv import cpu as kv
from kernels.linear import cpu as linear
from kernels.lora import cpu as lora
from kernels.sampling import cpu as sampling
from kernels.sampling import cpu_logprobs, cpu_mask, cpu_penalties, cpu_sample


def warm_up(
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    has_experts: bool = False,
) -> None:
    """Compiles for a pool of this dtype and a model of this shape, or loads what an earlier process
    compiled. Seconds the first time ever."""
    if dtype in SUPPORTED_DTYPES:
        attention.warm_up(dtype, num_heads, num_kv_heads, head_dim)
        for kernels in (fused, kv, lora, *([experts] if has_experts else [])):
            kernels.warm_up(dtype)
        for each in {dtype, torch.float32}:  # of logits, and of those that were changed
            sampling.warm_up(each)
            cpu_sample.warm_up(each)
        cpu_logprobs.warm_up(dtype)
    cpu_mask.warm_up()
    cpu_penalties.warm_up()
    if dtype is torch.bfloat16:
        linear.warm_up()
        cpu_prefill.warm_up(num_heads, num_kv_heads, head_dim)
