"""What benchmarks/gpu_kernels.py measures of choosing tokens, and the fewest bytes it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.kernel_cases import KernelCase, Shapes
from kernels.gpu.dispatch import uses_triton
from kernels.sampling import naive
from kernels.sampling.arguments import Filters
from kernels.sampling.op import sample

FILTERS = {
    "temperature": (False, False),
    "top_p": (False, True),
    "top_k, top_p": (True, True),
}


def sampling_cases(
    shapes: Shapes, device: torch.device, dtype: torch.dtype
) -> Iterator[KernelCase]:
    """On a GPU also by torch, which sorts: what the kernel replaces."""
    ops = {"sample": sample}
    if uses_triton(torch.empty(0, device=device)):
        ops["sample by torch"] = naive.sample
    for num_rows, vocab in shapes.sampled:
        for name, (has_top_k, has_top_p) in FILTERS.items():
            for op, function in ops.items():

                def make(
                    function: Callable[..., object] = function,
                    num_rows: int = num_rows,
                    vocab: int = vocab,
                    has_top_k: bool = has_top_k,
                    has_top_p: bool = has_top_p,
                ) -> Callable[[], object]:
                    logits = (torch.randn(num_rows, vocab, device=device) * 3).to(dtype)
                    rows = torch.arange(num_rows, device=device)
                    filters = Filters(
                        torch.full((num_rows,), 0.8, device=device),
                        torch.full((num_rows,), 50, device=device) if has_top_k else None,
                        torch.full((num_rows,), 0.95, device=device) if has_top_p else None,
                    )
                    uniforms = torch.rand(num_rows, dtype=torch.float64, device=device)
                    return lambda: function(logits, rows, filters, uniforms)

                yield KernelCase(
                    op,
                    f"{num_rows} of {vocab}, {name}",
                    bytes=num_rows * vocab * dtype.itemsize,
                    flops=0,
                    make=make,
                )
