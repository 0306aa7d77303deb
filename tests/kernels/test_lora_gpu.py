"""The Triton kernels of LoRA on a real device, at Llama 3 8B's shapes: run by make gpu-check."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from kernels.lora.metadata import LoraBatchMetadata, LoraBucket
from kernels.lora.op import lora_apply, lora_expand, lora_shrink
from kernels.lora.plan import LoraSpans, plan_row
from tests.kernels.lora_cases import LoraCase, Part, Shape

pytestmark = pytest.mark.gpu

PAGE_ELEMS = 2 * 16 * 8 * 128
GROUPS = {
    "qkv": Shape(4096, (4096, 1024, 1024), PAGE_ELEMS),
    "o": Shape(4096, (4096,), PAGE_ELEMS),
    "gate_up": Shape(4096, (14336, 14336), PAGE_ELEMS),
    "down": Shape(14336, (4096,), PAGE_ELEMS),
}
DTYPES = [torch.bfloat16, torch.float16]


def ranks(shape: Shape, rank: int) -> tuple[int, ...]:
    return (rank,) * len(shape.outs)


def random_parts(shape: Shape, seed: int) -> list[Part]:
    """Up to 48 segments of any ranks, projections left out, base-only tokens between them."""
    choose = random.Random(seed)
    parts: list[Part] = []
    for _ in range(choose.randint(1, 48)):
        if choose.random() < 0.2:
            parts.append(Part(choose.randint(1, 5)))
        chosen = [choose.choice((0, 1, 7, 8, 16, 33, 64, 128, 256)) for _ in shape.outs]
        if not any(chosen):
            chosen[-1] = 16
        length = 1 if choose.random() < 0.7 else choose.randint(2, 200)
        parts.append(Part(length, tuple(chosen)))
    return parts


def applied(case: LoraCase) -> torch.Tensor:
    y = case.base.clone()
    lora_apply(y, case.x, case.layer_pages, case.segments)
    case.check(y, case.base)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPS)
def test_64_distinct_adapters_in_decode(name: str, dtype: torch.dtype) -> None:
    shape = GROUPS[name]
    parts = [Part(1, ranks(shape, (8, 16, 32, 64)[at % 4])) for at in range(64)]
    case = LoraCase(shape, parts, dtype, "cuda")
    assert torch.equal(applied(case), applied(case))  # no order of additions is left to chance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GROUPS)
def test_one_adapter_in_prefill(name: str, dtype: torch.dtype) -> None:
    shape = GROUPS[name]
    case = LoraCase(shape, [Part(1), Part(1023, ranks(shape, 16))], dtype, "cuda")
    assert torch.equal(applied(case), applied(case))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", GROUPS)
def test_random_mixes(name: str, seed: int) -> None:
    shape = GROUPS[name]
    applied(LoraCase(shape, random_parts(shape, seed), DTYPES[seed % 2], "cuda", seed=seed))


@pytest.mark.parametrize("num_tokens", [1, 9, 100])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
def test_a_slice_of_a_head_of_odd_size(dtype: torch.dtype, num_tokens: int) -> None:
    """Qwen 2's vocabulary over 28 layers: 5427 columns, so nothing behind it is aligned."""
    shape = Shape(128, (5427,), PAGE_ELEMS)
    applied(LoraCase(shape, [Part(num_tokens, (9,)), Part(2, (64,))], dtype, "cuda", offset=77))


def test_shrinks_over_column_slices_add_up() -> None:
    case = LoraCase(GROUPS["o"], [Part(1, (16,)), Part(40, (8,))], torch.bfloat16, "cuda")
    y = case.base.clone()
    hidden = lora_shrink(case.x, case.layer_pages, case.segments)
    hidden = lora_shrink(case.x, case.layer_pages, case.segments, hidden)
    lora_expand(y, hidden, case.layer_pages, case.segments)
    case.delta *= 2
    case.check(y, case.base)


def test_a_captured_graph_serves_later_steps() -> None:
    shape = GROUPS["qkv"]
    bucket = LoraBucket(32, 32, 1200, 192, max_segment_tokens=16, alignment=8)
    device = torch.device("cuda")
    metadata = LoraBatchMetadata(bucket, 1, 1, device)
    x = torch.zeros(32, shape.in_features, dtype=torch.bfloat16, device=device)
    y = torch.zeros(32, shape.out_features, dtype=torch.bfloat16, device=device)
    pages = torch.zeros(1400, PAGE_ELEMS, dtype=torch.bfloat16, device=device)

    def step() -> None:
        lora_apply(y, x, pages, metadata.group(0, 0))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed, lengths in enumerate(([1] * 32, [16, 1, 15], [3], [1, 2, 1])):
        choose = random.Random(seed)
        parts = [Part(n, ranks(shape, choose.choice((8, 16, 64)))) for n in lengths]
        case = LoraCase(shape, parts, torch.bfloat16, "cuda", seed=seed)
        used = sum(lengths)
        pages.fill_(float("nan"))
        pages[: len(case.layer_pages)] = case.layer_pages
        x.fill_(float("nan"))
        x[:used] = case.x
        y.fill_(7.0)
        y[:used] = case.base
        rows = np.array([[[plan_row(s.plan) for s in case.segments]]])
        spans = LoraSpans.of([s[:2] for s in case.segments], [s.pages for s in case.segments])
        metadata.fill(spans, rows)
        graph.replay()
        case.check(y[:used], case.base)
        assert (y[used:] == 7.0).all()
