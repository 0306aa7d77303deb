"""Packed weights give what plain ones give, and come back unchanged."""

import pytest
import torch

from kernels.linear import cpu
from kernels.linear.op import linear, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 5, 7, 8, 11, 13, 33, 300])
@pytest.mark.parametrize("out_features", [50, 96])
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


@pytest.mark.skipif(not cpu.is_best(), reason="for AVX-512 without AMX")
def test_own_layout_is_used_and_independent_of_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 72, generator=generator).bfloat16()
    packed = pack(torch.randn(320, 72, generator=generator).bfloat16())
    assert packed.shape == (10, 72, 32)
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
    for rows in (1, 3, 13):
        assert torch.equal(linear(x[:rows], packed), alone[:rows])
