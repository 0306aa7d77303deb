"""What benchmarks/gpu_kernels.py measures of LoRA: decode batches whose tokens all have adapters of
their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import torch

from benchmarks.kernel_cases import KernelCase, ModelShape, Shapes
from kernels.lora.op import LoraSegments, lora_apply
from kernels.lora.plan import ExpandSlice, GroupPlan, PageRun, Segment


def lora_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, model in shapes.models.items():
        page_elems = 2 * model.page_tokens * model.kv_heads * model.head_dim
        for group, (in_features, outs) in groups_of(model).items():
            for label, ranks in shapes.lora_ranks.items():
                for count in shapes.lora_adapters:
                    chosen = islice(cycle(ranks), count)
                    plans = [group_plan(rank, in_features, outs) for rank in chosen]
                    weights = sum(elems(plan) for plan in plans)
                    yield KernelCase(
                        "lora_apply",
                        f"{name} {group}, {count} adapters of rank {label}",
                        bytes=dtype.itemsize * (weights + count * (in_features + 2 * sum(outs))),
                        flops=2 * weights,
                        make=_maker(plans, page_elems, sum(outs), device, dtype),
                    )


def groups_of(model: ModelShape) -> dict[str, tuple[int, tuple[int, ...]]]:
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return {
        "qkv": (model.hidden, (q, kv, kv)),
        "o": (q, (model.hidden,)),
        "gate_up": (model.hidden, (model.intermediate, model.intermediate)),
        "down": (model.intermediate, (model.hidden,)),
    }


def group_plan(rank: int, in_features: int, outs: tuple[int, ...]) -> GroupPlan:
    slices: list[ExpandSlice] = []
    offset, column = len(outs) * rank * in_features, 0
    for index, out in enumerate(outs):
        slices.append(ExpandSlice(index * rank, rank, offset, column, out))
        offset += rank * out
        column += out
    return GroupPlan(len(outs) * rank, in_features, 0, tuple(slices))


def elems(plan: GroupPlan) -> int:
    return plan.total_rank * plan.in_features + sum(
        part.rank * part.out_features for part in plan.slices
    )


def _maker(
    plans: list[GroupPlan], page_elems: int, out_features: int,
    device: torch.device, dtype: torch.dtype,
) -> Callable[[], Callable[[], object]]:  # fmt: skip
    needed = [-(-elems(plan) // page_elems) for plan in plans]

    def make() -> Callable[[], object]:
        pages = torch.randn(sum(needed), page_elems, device=device).to(dtype)
        ids = torch.randperm(sum(needed)).tolist()
        segments: list[Segment] = []
        for row, (plan, count) in enumerate(zip(plans, needed, strict=True)):
            own, ids = ids[:count], ids[count:]
            segments.append(Segment(row, row + 1, PageRun.of(own), plan))
        x = torch.randn(len(plans), plans[0].in_features, device=device).to(dtype)
        y = torch.zeros(len(plans), out_features, device=device, dtype=dtype)
        taken = on_device(segments, x)
        return lambda: lora_apply(y, x, pages, taken)

    return make


def on_device(segments: Sequence[Segment], x: torch.Tensor) -> LoraSegments:
    """As launches read them, made once, as the engine makes them once a step."""
    if not x.is_cuda:
        return segments
    from kernels.lora.metadata import group_metadata

    return group_metadata(segments, x)
