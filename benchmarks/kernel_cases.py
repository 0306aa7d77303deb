"""What benchmarks/gpu_kernels.py measures of attention, KV writes, norms and activations, and the
fewest bytes and operations that each must cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kernels.attention.metadata import Queries, attention_metadata
from kernels.attention.op import paged_attention
from kernels.fused.op import add_rms_norm, gated_activation, rms_norm
from kernels.kv.op import rope_write_kv


class ModelShape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    page_tokens: int = 16


class MixtureShape(NamedTuple):
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    shared: bool


@dataclass(frozen=True)
class Shapes:
    models: dict[str, ModelShape]
    decode: tuple[tuple[int, int], ...]  # sequences, length of each
    prefill: tuple[tuple[int, int, int], ...]  # chunks, tokens of each, sequence length
    tokens: tuple[int, ...]
    lora_adapters: tuple[int, ...]  # all different, one token each
    lora_ranks: dict[str, tuple[int, ...]]  # taken in turn
    sampled: tuple[tuple[int, int], ...]  # rows, vocabulary
    quantized_model: str  # of `models`
    quantized_tokens: tuple[int, ...]
    mixtures: dict[str, MixtureShape]
    mixture_tokens: tuple[int, ...]


SHAPES = {
    "real": Shapes(
        {
            "llama-2-7b": ModelShape(32, 32, 128, 4096, 11008),
            "llama-3-8b": ModelShape(32, 8, 128, 4096, 14336),
        },
        decode=((1, 1024), (1, 8192), (8, 2048), (64, 1024), (64, 4096)),
        prefill=((1, 512, 512), (1, 2048, 2048), (1, 512, 4096), (8, 256, 1024)),
        tokens=(1, 64, 2048),
        lora_adapters=(1, 2, 4, 8, 16, 32, 64),
        lora_ranks={"16": (16,), "8-64": (8, 16, 32, 64)},
        sampled=((1, 128_256), (64, 128_256), (64, 32_000)),
        quantized_model="llama-3-8b",
        quantized_tokens=(1, 16, 64, 512),
        mixtures={
            "mixtral-8x7b": MixtureShape(8, 2, 4096, 14336, False),
            "qwen3-30b-a3b": MixtureShape(128, 8, 2048, 768, False),
            "qwen1.5-moe-a2.7b": MixtureShape(60, 4, 2048, 1408, True),
        },
        mixture_tokens=(1, 16, 64, 512),
    ),
    "tiny": Shapes(
        {"tiny": ModelShape(4, 2, 16, 64, 96, 8)},
        decode=((1, 20), (3, 40)),
        prefill=((1, 9, 9), (2, 5, 12)),
        tokens=(1, 5),
        lora_adapters=(1, 3),
        lora_ranks={"4": (4,), "2-8": (2, 8)},
        sampled=((3, 50),),
        quantized_model="tiny",
        quantized_tokens=(1, 5),
        mixtures={"tiny": MixtureShape(4, 2, 16, 24, True)},
        mixture_tokens=(1, 5),
    ),
}


@dataclass(frozen=True)
class KernelCase:
    """`make` returns one call over tensors of its own: calls over several of them in turn find
    nothing of the last round in the cache."""

    op: str
    shape: str
    bytes: int  # that must be read or written at least, each once
    flops: int
    make: Callable[[], Callable[[], object]]


def decode_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, model in shapes.models.items():
        for count, length in shapes.decode:
            yield _attention_case(name, model, count, 1, length, device, dtype)


def prefill_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, model in shapes.models.items():
        for count, tokens, length in shapes.prefill:
            yield _attention_case(name, model, count, tokens, length, device, dtype)


def _attention_case(
    name: str,
    model: ModelShape,
    count: int,
    tokens: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> KernelCase:
    keys_seen = tokens * (length - tokens) + tokens * (tokens + 1) // 2
    row_elems = model.heads * model.head_dim
    kv_elems = 2 * length * model.kv_heads * model.head_dim
    blocks = -(-length // model.page_tokens)

    def make() -> Callable[[], object]:
        shape = (count * blocks, 2, model.page_tokens, model.kv_heads, model.head_dim)
        kv_pages = torch.randn(shape, device=device).to(dtype)
        q = torch.randn(count * tokens, model.heads, model.head_dim, device=device).to(dtype)
        pages = torch.randperm(count * blocks).tolist()
        queries = [
            Queries(i * tokens, (i + 1) * tokens, length, pages[i * blocks : (i + 1) * blocks])
            for i in range(count)
        ]
        metadata = attention_metadata(queries, device)
        return lambda: paged_attention(q, kv_pages, metadata, scale=model.head_dim**-0.5)

    return KernelCase(
        "attention_decode" if tokens == 1 else "attention_prefill",
        f"{name}, {count} x {tokens} of {length} tokens",
        bytes=count * dtype.itemsize * (2 * tokens * row_elems + kv_elems),
        flops=count * 4 * row_elems * keys_seen,
        make=make,
    )


def kv_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, model in shapes.models.items():
        columns = (model.heads + 2 * model.kv_heads) * model.head_dim
        for tokens in shapes.tokens:
            blocks = -(-tokens // model.page_tokens)

            def make(
                model: ModelShape = model,
                columns: int = columns,
                tokens: int = tokens,
                blocks: int = blocks,
            ) -> Callable[[], object]:
                qkv = torch.randn(tokens, columns, device=device).to(dtype)
                cos, sin = torch.rand(2, tokens, model.head_dim, device=device).to(dtype)
                shape = (blocks, 2, model.page_tokens, model.kv_heads, model.head_dim)
                kv_pages = torch.zeros(shape, device=device, dtype=dtype)
                slots = torch.randperm(blocks * model.page_tokens)[:tokens].to(device)
                index, offset = slots // model.page_tokens, slots % model.page_tokens
                return lambda: rope_write_kv(qkv, cos, sin, kv_pages, index, offset)

            yield KernelCase(
                "rope_write_kv",
                f"{name}, {tokens} tokens",
                bytes=tokens * dtype.itemsize * 2 * (columns + model.head_dim),
                flops=0,
                make=make,
            )


def fused_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    for name, model in shapes.models.items():
        for tokens in shapes.tokens:

            def rows(columns: int, tokens: int = tokens) -> torch.Tensor:
                return torch.randn(tokens, columns, device=device).to(dtype)

            def norm(
                rows: Callable[[int], torch.Tensor] = rows, hidden: int = model.hidden
            ) -> Callable[[], object]:
                x, weight = rows(hidden), torch.ones(hidden, device=device, dtype=dtype)
                return lambda: rms_norm(x, weight, 1e-5)

            def add_norm(
                rows: Callable[[int], torch.Tensor] = rows, hidden: int = model.hidden
            ) -> Callable[[], object]:
                # Zeros are added, so that many rounds do not overflow.
                x, residual = rows(hidden).zero_(), rows(hidden)
                weight = torch.ones(hidden, device=device, dtype=dtype)
                return lambda: add_rms_norm(x, residual, weight, 1e-5)

            def activation(
                rows: Callable[[int], torch.Tensor] = rows, columns: int = model.intermediate
            ) -> Callable[[], object]:
                gate_up = rows(2 * columns)
                return lambda: gated_activation(gate_up, "silu")

            row = tokens * dtype.itemsize
            shape = f"{name}, {tokens} tokens"
            yield KernelCase("rms_norm", shape, 2 * row * model.hidden, 0, norm)
            yield KernelCase("add_rms_norm", shape, 4 * row * model.hidden, 0, add_norm)
            yield KernelCase("gated_activation", shape, 3 * row * model.intermediate, 0, activation)
