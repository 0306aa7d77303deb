"""Rotary embedding and KV writes, on every device and in every dtype the pool may have."""

from __future__ import annotations

import pytest
import torch

from kernels.fused.naive import rms_norm
from kernels.kv import naive
from kernels.kv.op import rope_write_kv

HEAD_DIM, PAGE_TOKENS, NUM_PAGES = 8, 4, 5
# Of outputs of order 1: in bfloat16 the reference rounds its intermediates too.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.04}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("norms", [None, "same", "float32", "whole", "layer"])
@pytest.mark.parametrize(
    ("rotary_dim", "interleaved"), [(HEAD_DIM, False), (4, False), (HEAD_DIM, True), (4, True)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("num_tokens", [1, 7, 1030])
def test_rotates_and_stores(
    num_tokens: int,
    heads: int,
    kv_heads: int,
    rotary_dim: int,
    interleaved: bool,
    norms: str | None,
    dtype: torch.dtype,
    device: str,
) -> None:
    generator = torch.Generator().manual_seed(num_tokens + heads)
    num_pages = NUM_PAGES + num_tokens // PAGE_TOKENS

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    qkv = normal(num_tokens, (heads + 2 * kv_heads) * HEAD_DIM)
    angles = torch.randn(num_tokens, rotary_dim // 2, generator=generator).repeat(1, 2)
    cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    slots = torch.randperm(num_pages * PAGE_TOKENS, generator=generator)[:num_tokens].to(device)
    pages = torch.full((num_pages, 2, PAGE_TOKENS, kv_heads, HEAD_DIM), 7.0, dtype=dtype)
    pages = pages.to(device)
    weights = None
    if norms:
        counts = (heads, kv_heads) if norms in ("whole", "layer") else (1, 1)
        sizes = [count * HEAD_DIM for count in counts]
        weights = [1 + 0.1 * torch.randn(size, generator=generator) for size in sizes]
        weights = [w.to(device, torch.float32 if norms == "float32" else dtype) for w in weights]
        if norms == "layer":
            weights = [weight.view(-1, HEAD_DIM) for weight in weights]
    before = qkv.clone()
    q_norm, k_norm = weights or (None, None)
    q = rope_write_kv(
        qkv,
        cos,
        sin,
        pages,
        slots // PAGE_TOKENS,
        slots % PAGE_TOKENS,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-6,
        interleaved=interleaved,
    )
    assert torch.equal(qkv, before)
    wide = qkv.float().view(num_tokens, -1, HEAD_DIM)
    q_in, k_in, v_in = wide.split((heads, kv_heads, kv_heads), dim=1)
    if weights:
        q_in, k_in = (
            expected_norm(x, w.float()) for x, w in zip((q_in, k_in), weights, strict=True)
        )
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    expected = naive.apply_rope(q_in, cos.float(), sin.float(), interleaved=interleaved)
    torch.testing.assert_close(q.float(), expected, **tolerance)
    stored = pages.float().permute(1, 0, 2, 3, 4).reshape(2, -1, kv_heads, HEAD_DIM)
    expected = naive.apply_rope(k_in, cos.float(), sin.float(), interleaved=interleaved)
    torch.testing.assert_close(stored[0, slots], expected, **tolerance)
    assert torch.equal(stored[1, slots], v_in)
    untouched = torch.ones(stored.shape[1], dtype=torch.bool, device=device)
    untouched[slots] = False
    assert bool((stored[:, untouched] == 7.0).all())


def expected_norm(heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if weight.dim() == 2:
        return torch.nn.functional.layer_norm(heads, heads.shape[-1:], eps=1e-6) * weight
    return rms_norm(heads.reshape(len(heads), -1, len(weight)), weight, 1e-6).view_as(heads)


def test_rope_of_neighbours_rotates_pairs_side_by_side() -> None:
    x = torch.randn(1, 1, 6)
    angles = torch.tensor([[0.3, 1.1, 0.3, 1.1]])
    out = naive.apply_rope(x, angles.cos(), angles.sin(), interleaved=True)[0, 0]
    turns = torch.polar(torch.ones(2), angles[0, :2])
    pairs = torch.view_as_complex(x[0, 0, :4].view(2, 2)) * turns
    torch.testing.assert_close(out, torch.cat((torch.view_as_real(pairs).flatten(), x[0, 0, 4:])))


def test_rope_rotates_pairs_and_keeps_position_zero() -> None:
    x = torch.randn(2, 1, 4)
    angles = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.3, 1.1, 0.3, 1.1]])
    out = naive.apply_rope(x, angles.cos(), angles.sin())
    assert torch.equal(out[0], x[0])
    pair = torch.complex(x[1, 0, :2], x[1, 0, 2:]) * torch.polar(
        torch.ones(2), torch.tensor([0.3, 1.1])
    )
    torch.testing.assert_close(out[1, 0], torch.cat((pair.real, pair.imag)))


def test_misfits_are_refused() -> None:
    pages = torch.zeros(2, 2, PAGE_TOKENS, 2, HEAD_DIM)
    angles = torch.zeros(1, HEAD_DIM)
    slot = torch.zeros(1, dtype=torch.int64)
    good = torch.zeros(1, 6 * HEAD_DIM)
    rope_write_kv(good, angles, angles, pages, slot, slot)
    for qkv, cos in (
        (torch.zeros(1, 6 * HEAD_DIM + 1), angles),
        (torch.zeros(1, 7 * HEAD_DIM), angles),  # 3 heads over 2 key heads
        (torch.zeros(1, 4 * HEAD_DIM), angles),  # no heads
        (good.double(), angles),
        (good, torch.zeros(1, HEAD_DIM + 2)),
        (good, torch.zeros(2, HEAD_DIM)),
    ):
        with pytest.raises(ValueError):
            rope_write_kv(qkv, cos, cos, pages, slot, slot)
    for slots in (slot.int(), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="slots"):
            rope_write_kv(good, angles, angles, pages, slots, slot)
    with pytest.raises(ValueError, match="strides"):
        across = torch.zeros(2, 2, PAGE_TOKENS, HEAD_DIM, 2).transpose(3, 4)
        rope_write_kv(good, angles, angles, across, slot, slot)
    with pytest.raises(ValueError, match="rotated"):
        rope_write_kv(good, angles[:, :3], angles[:, :3], pages, slot, slot)
    with pytest.raises(ValueError, match="norm"):
        norm = torch.ones(HEAD_DIM - 1)
        rope_write_kv(good, angles, angles, pages, slot, slot, q_norm=norm, k_norm=norm)
    for size in (2 * HEAD_DIM, HEAD_DIM):  # q has 2 heads, k as many
        whole = torch.ones(2 * HEAD_DIM)
        norms = {"q_norm": whole, "k_norm": torch.ones(size)}
        if size == HEAD_DIM:
            with pytest.raises(ValueError, match="norm"):
                rope_write_kv(good, angles, angles, pages, slot, slot, **norms)
        else:
            rope_write_kv(good, angles, angles, pages, slot, slot, **norms)
    with pytest.raises(ValueError, match="together"):
        rope_write_kv(good, angles, angles, pages, slot, slot, q_norm=torch.ones(HEAD_DIM))


@pytest.mark.parametrize("per_head", [False, True])
def test_norms_over_all_heads_have_a_twin(per_head: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 8 * HEAD_DIM, generator=generator)  # 4 query heads, 2 key heads
    angles = torch.randn(3, HEAD_DIM // 2, generator=generator).repeat(1, 2)
    slots = torch.arange(3)
    norms = {
        "q_norm": torch.rand(4 * HEAD_DIM, generator=generator),
        "k_norm": torch.rand(2 * HEAD_DIM, generator=generator),
    }
    if per_head:
        norms = {name: norm.view(-1, HEAD_DIM) for name, norm in norms.items()}
    found: list[torch.Tensor] = []
    for rotate in (rope_write_kv, naive.rope_write_kv):
        pages = torch.zeros(1, 2, PAGE_TOKENS, 2, HEAD_DIM)
        at = (torch.zeros(3, dtype=torch.int64), slots)
        angle = angles.cos(), angles.sin()
        q = rotate(qkv, *angle, pages, *at, **norms, eps=0.1, interleaved=per_head)
        found += [q, pages]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])
