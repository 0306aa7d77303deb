"""Packed weights give what plain ones give, and come back unchanged."""

import pytest
import torch

from kernels.linear.op import linear, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 7, 33, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_equals_plain(dtype: torch.dtype, num_tokens: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, 72, generator=generator).to(dtype)
    weight = torch.randn(50, 72, generator=generator).to(dtype)
    bias = torch.randn(50, generator=generator).to(dtype) if with_bias else None
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
