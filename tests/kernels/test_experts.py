"""Mixtures of experts against float64, one token and one expert at a time: on CPU, in the
interpreter (tests/kernels/test_interpreted.py) and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.experts import naive
from kernels.experts.cpu_group import most_rows
from kernels.experts.op import mix_experts
from kernels.gpu.dispatch import interpreting, uses_triton
from kernels.linear import cpu as linear_cpu
from kernels.linear.tiling import most_tiles, num_rows
from tests.kernels.expert_cases import TOLERANCES, expected_mixture, random_experts, random_rows

pytestmark = [
    pytest.mark.usefixtures("poisoned_outputs"),
    # NumPy's word, when interpreted, for rows that are no numbers.
    pytest.mark.filterwarnings("ignore:All-NaN|invalid value|overflow:RuntimeWarning"),
]
on_cpu = pytest.mark.skipif(interpreting(), reason="of the CPU's own kernels")

# experts, hidden, intermediate, top_k: the last two fit no panels, or no block.
SHAPES = [(8, 64, 96, 2), (60, 96, 64, 4), (5, 34, 21, 3), (3, 40, 24, 3)]
TOKENS = [1, 5, 70]
DTYPES = list(TOLERANCES)
if interpreting():  # as slow as it is: the last number makes tiles of many rows
    SHAPES, TOKENS, DTYPES = [(5, 34, 21, 3), (3, 40, 24, 2)], [1, 28], DTYPES[::2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", TOKENS)
def test_mixtures(
    shape: tuple[int, int, int, int], num_tokens: int, dtype: torch.dtype, device: str
) -> None:
    experts, hidden, inter, top_k = shape
    has_shared = num_tokens != 5
    weights = random_experts(
        experts,
        hidden,
        inter,
        top_k,
        dtype=dtype,
        device=device,
        has_shared=has_shared,
        normalizes=num_tokens != 1,
    )
    x = random_rows(num_tokens, hidden, dtype).to(device)
    shared = random_rows(num_tokens, hidden, dtype, seed=2).to(device) if has_shared else None
    activation = "gelu_tanh" if experts == 5 else "silu"
    expected = expected_mixture(x, weights, activation, shared)
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    twin = naive.mix_experts(x, weights, activation, shared)
    torch.testing.assert_close(twin.double().cpu(), expected, **tolerance)
    weights.pack()
    actual = mix_experts(x, weights, activation, shared)
    assert actual.dtype is dtype and actual.shape == x.shape
    torch.testing.assert_close(actual.double().cpu(), expected, **tolerance)
    if shared is not None and uses_triton(x):
        delta = random_rows(num_tokens, hidden, dtype, seed=3).to(device)
        whole = mix_experts(x, weights, activation, shared + delta)
        apart = mix_experts(x, weights, activation, shared, delta)
        torch.testing.assert_close(apart, whole, **tolerance)


def test_equal_shares_go_to_experts_of_lower_number(device: str) -> None:
    """Of 6 experts, those with the largest logit are 1, 3, 4 and 5; two are taken."""
    weights = random_experts(6, 32, 32, 2, dtype=torch.float32, device=device)
    x = (4 * random_rows(4, 32, torch.float32)).round().abs().to(device)  # whose sums are exact
    weights.router[:] = 0.0
    weights.router[[1, 3, 4, 5]] = 0.5
    expected = expected_mixture(x, weights, "silu")
    alone = replace(weights, router=weights.router.clone())
    alone.router[[4, 5]] = -0.5
    torch.testing.assert_close(expected_mixture(x, alone, "silu"), expected)
    actual = mix_experts(x, weights, "silu")
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-5, atol=1e-5)


def test_rows_that_are_no_numbers_disturb_no_others(device: str) -> None:
    weights = random_experts(5, 32, 16, 3, dtype=torch.float32, device=device)
    x = random_rows(6, 32, torch.float32).to(device)
    expected = mix_experts(x, weights, "silu")
    x[2] = float("nan")
    x[4, 7] = float("inf")
    actual = mix_experts(x, weights, "silu")
    others = [0, 1, 3, 5]
    torch.testing.assert_close(actual[others], expected[others])
    assert not bool(actual[2].isfinite().any())


def test_no_tokens(device: str) -> None:
    weights = random_experts(4, 32, 32, 2, dtype=torch.float32, device=device)
    assert mix_experts(torch.empty(0, 32, device=device), weights, "silu").shape == (0, 32)


@on_cpu
def test_an_engines_step_leaves_buffers_that_others_can_use() -> None:
    weights = random_experts(3, 40, 24, 3, dtype=torch.float32)
    x = random_rows(300, 40, torch.float32)  # more than any other here
    with torch.inference_mode():
        expected = mix_experts(x, weights, "silu")
    assert torch.equal(mix_experts(x, weights, "silu"), expected)


@on_cpu
@pytest.mark.parametrize("layout", ["wide", "half", "pairs"])
def test_a_token_gets_the_same_bits_in_any_batch(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layout that this processor computes in, by any number of threads."""
    chosen = {"wide": linear_cpu.WIDE, "half": linear_cpu.HALF, "pairs": linear_cpu.PAIRS}[layout]
    if chosen not in linear_cpu.layouts():
        pytest.skip(f"not on this processor: {layout}")
    monkeypatch.setattr(linear_cpu, "layouts", lambda: (chosen,))
    weights = random_experts(12, 192, 64, 3, dtype=torch.bfloat16, has_shared=True)
    x, shared = (random_rows(90, 192, torch.bfloat16, seed=seed) for seed in (1, 2))
    expected = expected_mixture(x, weights, "silu", shared)
    weights.pack()
    assert weights.panels is not None and weights.panels.layouts == (chosen, chosen)
    whole = mix_experts(x, weights, "silu", shared)
    torch.testing.assert_close(whole.double(), expected, rtol=3e-2, atol=3e-2)
    for start, end in ((0, 1), (17, 18), (30, 55), (89, 90)):
        part = mix_experts(x[start:end], weights, "silu", shared[start:end])
        assert torch.equal(part, whole[start:end])
    num_threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(mix_experts(x, weights, "silu", shared), whole)
    finally:
        torch.set_num_threads(num_threads)


@on_cpu
def test_only_experts_that_were_chosen_are_read() -> None:
    """The others' weights are no numbers."""
    for dtype in (torch.float32, torch.bfloat16):
        weights = random_experts(16, 64, 64, 2, dtype=dtype)
        x = random_rows(3, 64, dtype)
        chosen, _ = naive.route(x, weights.router, 2, normalizes=True)
        expected = expected_mixture(x, weights, "silu")
        for expert in set(range(16)) - set(chosen.flatten().tolist()):
            weights.gate_up[expert][:] = float("nan")  # pyright: ignore
            weights.down[expert][:] = float("nan")  # pyright: ignore
        weights.pack()
        actual = mix_experts(x, weights, "silu").double()
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_tiles_of_all_experts_have_room() -> None:
    """However slots are shared out, whole buffers hold them."""
    for count in range(1, 200):
        assert num_rows(count) <= most_rows(count) and most_tiles(count) <= count


def test_misfits_are_refused(device: str) -> None:
    weights = random_experts(4, 32, 32, 2, dtype=torch.float32, device=device)
    shared = random_experts(4, 32, 32, 2, dtype=torch.float32, device=device, has_shared=True)
    x = torch.zeros(2, 32, device=device)
    for call in (
        lambda: mix_experts(x[:, :31], weights, "silu"),
        lambda: mix_experts(x.double(), weights, "silu"),
        lambda: mix_experts(x.t().contiguous().t(), weights, "silu"),
        lambda: mix_experts(x, weights, "relu"),
        lambda: mix_experts(x, weights, "silu", x),
        lambda: mix_experts(x, shared, "silu"),
        lambda: mix_experts(x, shared, "silu", x[:1]),
        lambda: mix_experts(x, weights, "silu", None, x),
    ):
        with pytest.raises(ValueError):
            call()


@on_cpu
def test_routing_is_the_same_as_of_transformers() -> None:
    """Its experts and shares, of all families."""
    from transformers import MixtralConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    x = random_rows(40, 32, torch.float32)
    mixtral = MixtralTopKRouter(MixtralConfig(hidden_size=32, num_local_experts=7))
    routers = [(mixtral, True)]
    for normalizes in (False, True):
        config = Qwen3MoeConfig(hidden_size=32, num_experts=7, norm_topk_prob=normalizes)
        config.num_experts_per_tok = 3
        routers.append((Qwen3MoeTopKRouter(config), normalizes))
    for router, normalizes in routers:
        torch.nn.init.normal_(router.weight)
        _, shares, chosen = router(x)
        order = chosen.argsort(-1)
        found, found_shares = naive.route(x, router.weight, router.top_k, normalizes=normalizes)
        assert torch.equal(found, chosen.gather(1, order))
        torch.testing.assert_close(found_shares, shares.gather(1, order))
