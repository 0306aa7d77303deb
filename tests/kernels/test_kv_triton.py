"""Triton's rope and KV write: interpreted (tests/kernels/test_interpreted.py) and on a
GPU. What may not be read is NaN, and so is what must be written."""

from __future__ import annotations

import pytest
import torch

from kernels.fused.naive import rms_norm
from kernels.kv import naive
from kernels.kv.op import rope_write_kv

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
PAGE_TOKENS, NUM_PAGES = 8, 4
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim", "norms", "dtype", "interleaved"),
    [
        (2, 2, 16, 16, None, torch.float32, False),
        (6, 2, 80, 32, None, torch.float16, False),
        (5, 1, 16, 16, "same", torch.bfloat16, False),
        (3, 3, 24, 8, "float32", torch.float32, False),
        (4, 1, 32, 32, "float32", torch.bfloat16, False),
        (5, 1, 24, 8, "whole", torch.float32, False),
        (70, 2, 16, 16, "whole", torch.bfloat16, False),  # more than a block of q
        (6, 2, 24, 8, None, torch.float32, True),
        (5, 1, 24, 24, "layer", torch.float32, True),
        (4, 2, 16, 8, "layer", torch.bfloat16, False),
    ],
)
def test_twin(
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    norms: str | None,
    dtype: torch.dtype,
    interleaved: bool,
    with_delta: bool,
    triton_device: str,
) -> None:
    generator = torch.Generator().manual_seed(heads)
    num_tokens, columns = 5, (heads + 2 * kv_heads) * head_dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(triton_device, dtype)

    wide = torch.full((num_tokens, columns + 16), float("nan"), dtype=dtype, device=triton_device)
    qkv = wide[:, :columns]
    qkv.copy_(normal(num_tokens, columns))
    delta = normal(num_tokens, columns)
    angles = torch.randn(num_tokens, rotary_dim // 2, generator=generator).repeat(1, 2)
    cos, sin = angles.cos().to(triton_device, dtype), angles.sin().to(triton_device, dtype)
    slots = torch.randperm(NUM_PAGES * PAGE_TOKENS, generator=generator)[:num_tokens]
    page_index, page_offset = slots // PAGE_TOKENS, slots % PAGE_TOKENS
    page_index[3] = -1  # padding
    shape = (2, NUM_PAGES, 2, PAGE_TOKENS, kv_heads, head_dim)
    pool = torch.full(shape, float("nan"), dtype=dtype, device=triton_device)
    weights: list[torch.Tensor | None] = [None, None]
    if norms:
        weight_dtype = torch.float32 if norms == "float32" else dtype
        weights = [
            (1 + 0.3 * torch.randn(count * head_dim, generator=generator)).to(
                triton_device, weight_dtype
            )
            for count in ((heads, kv_heads) if norms in ("whole", "layer") else (1, 1))
        ]
        if norms == "layer":
            weights = [each.view(-1, head_dim) for each in weights if each is not None]
    q = rope_write_kv(
        qkv,
        cos,
        sin,
        pool[1],
        page_index.to(triton_device),
        page_offset.to(triton_device),
        q_norm=weights[0],
        k_norm=weights[1],
        eps=1e-3,
        delta=delta if with_delta else None,
        interleaved=interleaved,
    )
    total = (qkv.float() + delta.float()) if with_delta else qkv.float()
    q_in, k_in, v_in = (
        part for part in total.view(num_tokens, -1, head_dim).split((heads, kv_heads, kv_heads), 1)
    )
    if norms:
        q_in, k_in = (
            expected_norm(x, w.float()) for x, w in zip((q_in, k_in), weights, strict=True)
        )
    expected_q, expected_k = (
        naive.apply_rope(x, cos.float(), sin.float(), interleaved=interleaved) for x in (q_in, k_in)
    )
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    torch.testing.assert_close(q.float(), expected_q, **tolerance)
    stored = pool[1].float().permute(1, 0, 2, 3, 4).reshape(2, -1, kv_heads, head_dim)
    kept = [0, 1, 2, 4]
    torch.testing.assert_close(stored[0, slots[kept]], expected_k[kept], **tolerance)
    assert torch.equal(stored[1, slots[kept]], v_in[kept].to(dtype).float())
    untouched = torch.ones(stored.shape[1], dtype=torch.bool)
    untouched[slots[kept]] = False
    assert bool(stored[:, untouched].isnan().all())
    assert bool(pool[0].isnan().all())


def expected_norm(heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() == 2:
        return torch.nn.functional.layer_norm(heads, heads.shape[-1:], eps=1e-3) * weight
    return rms_norm(heads.reshape(len(heads), -1, len(weight)), weight, 1e-3).view_as(heads)


def test_no_tokens(triton_device: str) -> None:
    empty = torch.zeros(0, 3 * 16, device=triton_device)
    angles = torch.zeros(0, 16, device=triton_device)
    slots = torch.zeros(0, dtype=torch.int64, device=triton_device)
    pages = torch.zeros(1, 2, PAGE_TOKENS, 1, 16, device=triton_device)
    assert rope_write_kv(empty, angles, angles, pages, slots, slots).shape == (0, 1, 16)
