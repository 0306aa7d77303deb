"""What benchmarks/gpu_kernels.py measures of mixtures of experts, and the fewest bytes and
operations that each must cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.kernel_cases import KernelCase, MixtureShape, Shapes
from kernels.experts.lora import ExpertLora
from kernels.experts.op import mix_experts
from kernels.experts.weights import ExpertWeights
from kernels.gpu.dispatch import uses_triton
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import ExpandSlice, GroupPlan, LoraSpans, PageRun, SegmentGroup, plan_row

NUM_ADAPTERS = 4
RANK = 16
_PAGE_ELEMS = 16_384


def expert_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, shape in shapes.mixtures.items():
        for tokens in shapes.mixture_tokens:
            for touched in sorted({min(shape.top_k * tokens, shape.experts), shape.top_k}):

                def make(
                    shape: MixtureShape = shape, tokens: int = tokens, touched: int = touched
                ) -> Callable[[], object]:
                    return _call(shape, tokens, touched, device, dtype)

                yield KernelCase(
                    "mix_experts",
                    f"{name}, {tokens} tokens, {touched} experts",
                    bytes=mixture_bytes(shape, tokens, touched, dtype.itemsize),
                    flops=tokens * mixture_flops(shape),
                    make=make,
                )
            yield _adapters_case(name, shape, tokens, device, dtype)


def _adapters_case(
    name: str, shape: MixtureShape, tokens: int, device: torch.device, dtype: torch.dtype
) -> KernelCase:
    """All experts, with adapters on all of them, which have as many tokens each."""
    touched = min(shape.top_k * tokens, shape.experts)
    count = min(NUM_ADAPTERS, tokens)
    each = RANK * (2 * shape.hidden + 3 * shape.intermediate)  # of one expert
    pairs = {
        (token * count // tokens, slot % touched)
        for token in range(tokens)
        for slot in range(token * shape.top_k, (token + 1) * shape.top_k)
    }

    def make() -> Callable[[], object]:
        return _call(shape, tokens, touched, device, dtype, count)

    return KernelCase(
        "mix_experts_lora",
        f"{name}, {tokens} tokens, {count} adapters of rank {RANK}",
        bytes=mixture_bytes(shape, tokens, touched, dtype.itemsize)
        + len(pairs) * each * dtype.itemsize,
        flops=tokens * (mixture_flops(shape) + 2 * shape.top_k * each),
        make=make,
    )


def mixture_bytes(shape: MixtureShape, tokens: int, touched: int, itemsize: int) -> int:
    """The router, the experts that tokens go to, and tokens in and out, each once."""
    weights = (shape.experts + touched * 3 * shape.intermediate + shape.shared) * shape.hidden
    return (weights + (2 + shape.shared) * tokens * shape.hidden) * itemsize


def mixture_flops(shape: MixtureShape) -> int:
    """Of a token."""
    features = shape.experts + shape.top_k * 3 * shape.intermediate + shape.shared
    return 2 * shape.hidden * features


def _lora(
    shape: MixtureShape, tokens: int, count: int, device: torch.device, dtype: torch.dtype
) -> ExpertLora:
    hidden, inter = shape.hidden, shape.intermediate
    rows = RANK * hidden, RANK * 2 * inter, RANK * inter, RANK * hidden
    offsets = [0, *itertools.accumulate(rows)]
    expert_elems = offsets.pop()
    num_pages = -(-shape.experts * expert_elems // _PAGE_ELEMS)
    pages = torch.randn(count * num_pages, _PAGE_ELEMS, device=device, dtype=dtype) * 0.02
    plans = [
        GroupPlan(
            *(RANK, inputs, offsets[2 * at]),
            (ExpandSlice(0, RANK, offsets[2 * at + 1], 0, outputs),),
            expert_elems,
        )
        for at, (inputs, outputs) in enumerate(((hidden, 2 * inter), (inter, hidden)))
    ]
    bounds = [-(-at * tokens // count) for at in range(count + 1)]
    runs = [PageRun.of(list(range(at * num_pages, (at + 1) * num_pages))) for at in range(count)]
    common = LoraSpans.of(list(itertools.pairwise(bounds)), runs)
    told = np.array([[[plan_row(plan)] * count for plan in plans]], dtype=np.int64)
    if uses_triton(pages):
        metadata = LoraBatchMetadata.of(common, told, device)
        return ExpertLora(pages, None, metadata.group(0, 0), metadata.group(0, 1))
    of_both = (SegmentGroup(common, told[0, at], [plans[at]] * count) for at in range(2))
    return ExpertLora(pages, None, *of_both)


def _call(
    shape: MixtureShape,
    tokens: int,
    touched: int,
    device: torch.device,
    dtype: torch.dtype,
    num_adapters: int = 0,
) -> Callable[[], object]:
    """Tokens go round the first `touched` experts: rows are one input each, of as many as there are
    experts, and the router asks by these."""
    experts, hidden, inter = shape.experts, shape.hidden, shape.intermediate

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=dtype) * size[-1] ** -0.5

    gate_up, down = normal(experts, 2 * inter, hidden), normal(experts, hidden, inter)
    apart = device.type == "cpu"
    x = normal(tokens, hidden)
    router = torch.zeros(experts, hidden, device=device, dtype=dtype)
    width = min(experts, hidden)
    router[:width, :width] = torch.eye(width, device=device, dtype=dtype)
    x[:, :width] = 0.0
    for token in range(tokens):
        for place in range(shape.top_k):
            x[token, (token * shape.top_k + place) % touched % width] = 10.0
    weights = ExpertWeights(
        router,
        list(gate_up) if apart else gate_up,
        list(down) if apart else down,
        normal(1, hidden) if shape.shared else None,
        shape.top_k,
        normalizes=True,
    )
    weights.pack()
    shared = normal(tokens, hidden) if shape.shared else None
    lora = _lora(shape, tokens, num_adapters, device, dtype) if num_adapters else None
    return lambda: mix_experts(x, weights, "silu", shared, lora=lora)
