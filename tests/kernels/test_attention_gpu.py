"""Attention, rope, norms and activations at the shapes of real models, on a real device."""

from __future__ import annotations

import pytest
import torch

from kernels.attention.metadata import attention_metadata
from kernels.attention.op import paged_attention
from kernels.fused import naive as fused_naive
from kernels.fused.op import add_rms_norm, gated_activation, rms_norm
from kernels.kv import naive as kv_naive
from kernels.kv.op import rope_write_kv
from tests.kernels.decode_buffers import DecodeBuffers
from tests.kernels.paged_batch import PagedBatch, paged_batch

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-4}

# (sequence length, tokens of it in this batch)
MIXED = [(1, 1), (700, 1), (513, 513), (2048, 300), (4100, 1), (255, 255), (3000, 17), (256, 1)]
MODELS = {
    "Llama 2 7B": (32, 32, 128, None, None),
    "Llama 3 8B": (32, 8, 128, None, None),
    "Qwen2 7B": (28, 4, 128, None, None),
    "Mistral 7B": (32, 8, 128, 1024, None),
    "Gemma 2 9B": (16, 8, 256, 2048, 50.0),
    "Phi-3 mini": (32, 32, 96, 2047, None),
    "Phi-2": (32, 32, 80, None, None),
    "TinyLlama": (32, 4, 64, None, None),
    "one key head": (71, 1, 64, None, None),
}


def batch_of(
    sequences: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    page_tokens: int = 16,
) -> PagedBatch:
    return paged_batch(
        sequences, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_tokens=page_tokens,
        dtype=dtype, device=DEVICE,
    )  # fmt: skip


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("model", MODELS)
def test_attention_of_real_models(model: str, dtype: torch.dtype) -> None:
    heads, kv_heads, head_dim, window, soft_cap = MODELS[model]
    batch = batch_of(MIXED, heads, kv_heads, head_dim, dtype)
    metadata = attention_metadata(batch.queries, batch.q.device)
    scale = head_dim**-0.5
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = paged_attention(
            batch.q, batch.kv_pages, metadata, scale=scale, sliding_window=window, soft_cap=soft_cap
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = batch.expected(scale, window, soft_cap)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("page_tokens", [8, 32, 128])
def test_pages_of_other_sizes(page_tokens: int) -> None:
    batch = batch_of([(1000, 1), (300, 170), (9000, 1)], 8, 2, 128, torch.bfloat16, page_tokens)
    metadata = attention_metadata(batch.queries, batch.q.device)
    actual = paged_attention(batch.q, batch.kv_pages, metadata, scale=0.1)
    torch.testing.assert_close(actual.double(), batch.expected(0.1), rtol=2e-2, atol=2e-2)


def test_the_same_bits_in_any_batch_and_every_time() -> None:
    batch = batch_of([(5000, 1), (700, 700), (90, 1), (2500, 64)], 32, 8, 128, torch.bfloat16)
    metadata = attention_metadata(batch.queries, batch.q.device)
    together = paged_attention(batch.q, batch.kv_pages, metadata, scale=0.09)
    for _ in range(5):
        again = paged_attention(batch.q, batch.kv_pages, metadata, scale=0.09)
        assert torch.equal(again, together)
    for query in batch.queries:
        alone = query._replace(start=0, end=query.end - query.start)
        actual = paged_attention(
            batch.q[query.start : query.end],
            batch.kv_pages,
            attention_metadata([alone], batch.q.device),
            scale=0.09,
        )
        assert torch.equal(actual, together[query.start : query.end])


def test_one_graph_serves_every_batch_of_its_bucket() -> None:
    batch = batch_of([(700, 1), (33, 1), (1500, 1), (256, 1), (1, 1)], 32, 8, 128, torch.bfloat16)
    buffers = DecodeBuffers(8, 100, batch.q.device)
    q = torch.zeros(8, 32, 128, dtype=torch.bfloat16, device=DEVICE)

    def step() -> torch.Tensor:
        return paged_attention(q, batch.kv_pages, buffers.metadata, scale=0.09)

    step()  # compiles outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for count in (5, 2, 4):
        queries = batch.queries[:count]
        q[:count] = batch.q[:count]
        buffers.fill(queries)
        graph.replay()
        metadata = attention_metadata(queries, batch.q.device)
        eager = paged_attention(batch.q[:count], batch.kv_pages, metadata, scale=0.09)
        assert torch.equal(out[:count], eager)
        assert bool((out[count:] == 0).all())


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_rope_and_kv_write_of_real_models(model: str, norms: bool) -> None:
    heads, kv_heads, head_dim, _, _ = MODELS[model]
    num_tokens, num_pages = 1000, 80
    qkv = torch.randn(num_tokens, (heads + 2 * kv_heads) * head_dim, device=DEVICE)
    angles = torch.rand(num_tokens, head_dim // 2, device=DEVICE).repeat(1, 2) * 6.3
    slots = torch.randperm(num_pages * 16, device=DEVICE)[:num_tokens]
    weights = torch.rand(2, head_dim, device=DEVICE) + 0.5
    for dtype, tolerance in TOLERANCES.items():
        x, cos, sin = (each.to(dtype) for each in (qkv, angles.cos(), angles.sin()))
        kwargs = dict(zip(("q_norm", "k_norm"), weights.to(dtype), strict=True)) if norms else {}
        pages = torch.zeros(num_pages, 2, 16, kv_heads, head_dim, device=DEVICE)
        narrow = pages.to(dtype)
        at = (slots // 16, slots % 16)
        q = rope_write_kv(x, cos, sin, narrow, *at, eps=1e-6, **kwargs)
        wide = {name: weight.float() for name, weight in kwargs.items()}
        expected = kv_naive.rope_write_kv(
            x.float(), cos.float(), sin.float(), pages, *at, eps=1e-6, **wide
        )
        torch.testing.assert_close(q.float(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(narrow.float(), pages, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("features", [2048, 3072, 4096, 8192, 14336, 28672])
@pytest.mark.parametrize("rows", [1, 64, 3000])
def test_norms_and_activations_of_real_models(rows: int, features: int) -> None:
    wide = torch.randn(rows, 2 * features, device=DEVICE)
    for dtype, tolerance in TOLERANCES.items():
        x = wide.to(dtype)
        one, other = (half.contiguous() for half in x.chunk(2, dim=-1))
        weight = (1 + torch.rand(features, device=DEVICE)).to(dtype)
        close = {"rtol": tolerance, "atol": tolerance}
        actual = rms_norm(one, weight, 1e-5).float()
        expected = fused_naive.rms_norm(one.float(), weight.float(), 1e-5)
        torch.testing.assert_close(actual, expected, **close)
        total = one + other
        actual = add_rms_norm(one, other, weight, 1e-5).float()
        assert torch.equal(other, total)
        expected = fused_naive.rms_norm(total.float(), weight.float(), 1e-5)
        torch.testing.assert_close(actual, expected, **close)
        for activation in ("silu", "gelu_tanh"):
            actual = gated_activation(x, activation).float()
            expected = fused_naive.gated_activation(x.float(), activation)
            torch.testing.assert_close(actual, expected, **close)
