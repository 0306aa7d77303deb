"""Each kernel's part of the roofline, by benchmarks.gpu_kernels."""

from __future__ import annotations

from typing import Any

from benchmarks import gpu_kernels
from benchmarks.gpu.bench import Bench
from benchmarks.kernel_cases import SHAPES

GROUPS = {
    "kernels-attention": ("decode", "prefill"),
    "kernels-fused": ("kv", "fused", "sampling"),
    "kernels-lora": ("lora",),
    "kernels-quantized": ("quantized",),
    "kernels-experts": ("experts",),
}
_ROUNDS = 5


def kernels(bench: Bench, part: str) -> dict[str, Any]:
    shapes = SHAPES[bench.scale.kernels]
    report = gpu_kernels.run(list(GROUPS[part]), shapes, bench.device, bench.dtype, _ROUNDS)
    kept = ("rounds", "copy_bytes_per_s", "matmul_flops_per_s", "cases")
    return {key: report[key] for key in kept}
