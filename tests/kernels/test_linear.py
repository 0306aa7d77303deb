"""Packed weights give what plain ones give, and come back unchanged."""

import pytest
import torch

from kernels.linear import cpu
from kernels.linear.op import linear, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 5, 7, 8, 11, 13, 33, 300])
@pytest.mark.parametrize("out_features", [50, 96, 128])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_equals_plain(
    dtype: torch.dtype, num_tokens: int, out_features: int, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, 72, generator=generator).to(dtype)
    weight = torch.randn(out_features, 72, generator=generator).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype) if with_bias else None
    packed = pack(weight)
    assert torch.equal(unpack(packed), weight)
    expected = x.float() @ weight.float().T + (0 if bias is None else bias.float())
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 0.1}
    )
    torch.testing.assert_close(linear(x, packed, bias).float(), expected, **tolerance)
    torch.testing.assert_close(linear(x, weight, bias).float(), expected, **tolerance)


def test_float32_on_cpu_is_packed() -> None:
    """Or the test above compares nothing."""
    assert pack(torch.zeros(4, 4)).is_mkldnn == torch.backends.mkldnn.is_available()


NEEDS = {
    "wide": (cpu.WIDE, "AVX-512 without AMX"),
    "half": (cpu.HALF, "AVX512-FP16"),
    "pairs": (cpu.PAIRS, "AVX512-BF16"),
}


@pytest.fixture(params=list(NEEDS))
def layout(request: pytest.FixtureRequest) -> cpu.Layout:
    """Each that this processor computes in."""
    each, needs = NEEDS[request.param]
    if each not in cpu.layouts():
        pytest.skip(f"for {needs}")
    return each


def test_the_fastest_layout_that_fits_is_taken() -> None:
    for out_features, in_features in ((128, 8), (96, 8), (128, 7), (50, 8)):
        weight = torch.zeros(out_features, in_features, dtype=torch.bfloat16)
        layout = cpu.layout_for(weight)
        fitting = [each for each in cpu.layouts() if fits(each, out_features, in_features)]
        if not fitting:
            assert layout is None
        else:
            assert layout is fitting[0]
            assert cpu.is_packed(pack(weight)) and cpu.layout_of(pack(weight)) is layout
            assert cpu.features_of(pack(weight)) == (in_features, out_features)


def fits(layout: cpu.Layout, out_features: int, in_features: int) -> bool:
    return out_features % {"half": 64}.get(name_of(layout), 32) == 0 and (
        name_of(layout) != "pairs" or in_features % 2 == 0
    )


def name_of(layout: cpu.Layout) -> str:
    return next(name for name, (each, _) in NEEDS.items() if each is layout)


def test_rows_are_their_own_and_threads_make_no_difference(layout: cpu.Layout) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 1100, generator=generator).bfloat16()
    packed = layout.pack(torch.randn(320, 1100, generator=generator).bfloat16())
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = linear(x, packed)
        torch.set_num_threads(4)
        for _ in range(20):
            assert torch.equal(linear(x, packed), alone)
    finally:
        torch.set_num_threads(num_threads)
    # Each token's result is its own, whoever else is in the batch.
    for rows in (1, 2, 3, 6, 8, 13, 40):
        assert torch.equal(linear(x[:rows], packed), alone[:rows])


@pytest.mark.parametrize("in_features", [1, 31, 32, 33, 72, 1024, 1100, 3000])
def test_loses_little_more_than_rounding(layout: cpu.Layout, in_features: int) -> None:
    """The mean error of results is at most a quarter above that of exact ones that are rounded."""
    if not fits(layout, 256, in_features):
        pytest.skip("not for an odd number of inputs")
    generator = torch.Generator().manual_seed(in_features)
    x = torch.randn(64, in_features, generator=generator).bfloat16()
    weight = (torch.randn(256, in_features, generator=generator) * 0.02).bfloat16()
    exact = x.double() @ weight.double().T
    rounding = (exact.bfloat16().double() - exact).square().mean().sqrt()
    error = (linear(x, layout.pack(weight)).double() - exact).square().mean().sqrt()
    assert error <= 1.25 * rounding


@pytest.mark.parametrize("of_x", [1e-30, 1e-4, 1.0, 1e4, 1e25])
@pytest.mark.parametrize("of_weight", [1e-6, 1.0, 1e5])
def test_no_range_is_too_large_or_small(layout: cpu.Layout, of_x: float, of_weight: float) -> None:
    """All of one sign and size, so that sums grow as far as they can; rows and outputs of very
    different sizes, and one of zeros."""
    sizes = torch.tensor([[1.0], [1e-3], [0.0], [1e3]])
    x = (torch.full((4, 2048), 1.99) * of_x * sizes).bfloat16()
    weight = torch.full((64, 2048), 1.99 * of_weight)
    weight[1::4] *= 1e-3
    weight[2::4] = 0
    weight = weight.bfloat16()
    exact = x.double() @ weight.double().T
    result = linear(x, layout.pack(weight)).double()
    lost = 2048 * 2.0**-126 if layout is cpu.PAIRS else 0.0  # products that are no normal numbers
    torch.testing.assert_close(result, exact, rtol=0.01, atol=lost)
    assert torch.equal(layout.unpack(layout.pack(weight)), weight)


def test_what_is_no_number_stays_so_in_its_row(layout: cpu.Layout) -> None:
    x = torch.ones(5, 40, dtype=torch.bfloat16)
    x[1, 3], x[2, 5], x[4, 0] = float("nan"), float("inf"), float("-inf")
    result = linear(x, layout.pack(torch.ones(64, 40, dtype=torch.bfloat16)))
    assert result[1].isnan().all()
    assert (result[2] == float("inf")).all() and (result[4] == float("-inf")).all()
    assert (result[0] == 40).all() and (result[3] == 40).all()


def test_misfits_are_refused(layout: cpu.Layout) -> None:
    packed = layout.pack(torch.ones(64, 40, dtype=torch.bfloat16))
    x = torch.ones(5, 40, dtype=torch.bfloat16)
    for misfit, bias in (
        (x[:, :39], None),
        (torch.ones(5, 72, dtype=torch.bfloat16), None),
        (x.float(), None),
        (x, torch.zeros(63, dtype=torch.bfloat16)),
        (x, torch.zeros(64)),
    ):
        with pytest.raises(ValueError):
            linear(misfit, packed, bias)


def test_packed_weights_come_back(layout: cpu.Layout) -> None:
    """In float16 but for the lowest bits of what is tiny beside the output's largest."""
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(256, 300, generator=generator) * 0.02).bfloat16()
    weight[5, 7] = 1e-9
    back = layout.unpack(layout.pack(weight))
    largest = weight.abs().amax(1, keepdim=True).float()
    assert ((back.float() - weight.float()).abs() <= largest * 2.0**-29).all()
    assert (back != weight).sum() <= (1 if layout is cpu.HALF else 0)
