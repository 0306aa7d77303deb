"""Adapters on mixtures of experts against weights that they were added to, in float64: on CPU, in
the interpreter (tests/kernels/test_interpreted.py) and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.experts import naive
from kernels.experts.cpu import warm_up
from kernels.experts.cpu_group import lora_blocks
from kernels.experts.op import mix_experts
from kernels.gpu.dispatch import interpreting
from kernels.linear import cpu as linear_cpu
from tests.kernels.expert_cases import TOLERANCES, random_experts, random_rows
from tests.kernels.expert_lora_cases import ExpertLoraCase, Part

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
on_cpu = pytest.mark.skipif(interpreting(), reason="of the CPU's own kernels")

PARTS = [
    Part(3),
    Part(2, (0, (3,), 0)),
    Part(1, (2, (), 5)),
    Part(4),
    Part(20, (0, (8, 2), 16)),
    Part(1, (1, (40,), 7)),
]
"""Base-only, fused and apart, without some groups, of one token and of more than a block."""
# experts, hidden, intermediate, top_k: aligned and not
SHAPES = [(6, 64, 48, 2), (5, 34, 21, 3)]
DTYPES = [torch.float32] if interpreting() else [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_adapters(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    experts, hidden, inter, top_k = shape
    weights = random_experts(
        *(experts, hidden, inter, top_k), dtype=dtype, device=device, has_shared=True
    )
    parts = PARTS if shape == SHAPES[0] else PARTS[1:4]
    # Roundings of bfloat16 may choose another expert.
    if dtype is torch.bfloat16:
        parts = [each._replace(ranks=each.ranks and (0, *each.ranks[1:])) for each in parts]
    case = ExpertLoraCase(weights, parts)
    num_tokens = len(case.adapters)
    x, shared = (random_rows(num_tokens, hidden, dtype, seed=seed) for seed in (1, 2))
    expected = case.expected(x, "silu", shared)
    x, shared = x.to(device), shared.to(device)
    tolerance = {"rtol": TOLERANCES[dtype], "atol": 2 * TOLERANCES[dtype]}
    twin = naive.mix_experts(x, weights, "silu", shared, case.lora)
    torch.testing.assert_close(twin.double().cpu(), expected, **tolerance)
    plain = mix_experts(x, weights, "silu", shared)
    weights.pack()
    actual = mix_experts(x, weights, "silu", shared, lora=case.lora)
    torch.testing.assert_close(actual.double().cpu(), expected, **tolerance)
    base = [token for token, each in enumerate(case.adapters) if each is None]
    assert not base or not torch.allclose(actual, plain, atol=0.1)
    torch.testing.assert_close(actual[base], plain[base], **tolerance)


@on_cpu
@pytest.mark.parametrize("layout", ["wide", "half", "pairs"])
def test_a_token_gets_the_same_bits_in_any_batch(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"wide": linear_cpu.WIDE, "half": linear_cpu.HALF, "pairs": linear_cpu.PAIRS}[layout]
    if chosen not in linear_cpu.layouts():
        pytest.skip(f"not on this processor: {layout}")
    monkeypatch.setattr(linear_cpu, "layouts", lambda: (chosen,))
    weights = random_experts(6, 192, 64, 3, dtype=torch.bfloat16)
    ranks = (4, (16,), 5)
    whole = ExpertLoraCase(weights, [Part(8), Part(50, ranks), Part(9)])
    x = random_rows(67, 192, torch.bfloat16)
    expected = whole.expected(x, "silu")
    plain = replace(weights)
    weights.pack()
    assert weights.panels is not None
    base = mix_experts(x, weights, "silu")
    together = mix_experts(x, weights, "silu", lora=whole.lora)
    torch.testing.assert_close(together[8:58].double(), expected[8:58], rtol=5e-2, atol=5e-2)
    for rows in (slice(0, 8), slice(58, 67)):  # whom no adapter touches
        assert torch.equal(together[rows], base[rows])
    assert not any(map(torch.equal, together[8:58], base[8:58]))
    assert torch.equal(mix_experts(x, weights, "silu"), base)  # nothing of them stays
    for start, end in ((0, 1), (7, 42)):
        alone = ExpertLoraCase(plain, [Part(end - start, ranks)])
        part = mix_experts(x[8 + start : 8 + end], weights, "silu", lora=alone.lora)
        assert torch.equal(part, together[8 + start : 8 + end])
    num_threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(mix_experts(x, weights, "silu", lora=whole.lora), together)
    finally:
        torch.set_num_threads(num_threads)


@on_cpu
def test_steps_compile_nothing_that_warming_up_has_not() -> None:
    warm_up(torch.float32)
    weights = random_experts(6, 64, 48, 2, dtype=torch.float32)
    case = ExpertLoraCase(weights, [Part(4, (1, (2,), 3))])
    mix_experts(random_rows(4, 64, torch.float32), weights, "silu", lora=case.lora)
    assert len(lora_blocks.nopython_signatures) == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_segments_beyond_the_batch_are_refused(device: str) -> None:
    weights = random_experts(6, 64, 48, 2, dtype=torch.float32, device=device)
    case = ExpertLoraCase(weights, [Part(4, (1, (2,), 3))])
    x = random_rows(3, 64, torch.float32).to(device)
    with pytest.raises(ValueError, match="leave"):
        mix_experts(x, weights, "silu", lora=case.lora)
