"""Triton's norms and activations: interpreted (tests/kernels/test_interpreted.py) and on
a GPU. What may not be read is NaN, and so is what must be written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.fused.op import (
    add_layer_norm,
    add_rms_norm,
    gated_activation,
    layer_norm,
    plain_activation,
    rms_norm,
)

pytestmark = [
    pytest.mark.usefixtures("poisoned_outputs"),
    # NumPy's word, when interpreted, for what the kernel counts on: exp of much is infinite.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def rows_in_nan(
    rows: int, features: int, dtype: torch.dtype, device: str, seed: int = 0
) -> torch.Tensor:
    """[rows, features] of a wider NaN matrix."""
    values = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    wide = torch.full((rows, features + 3), float("nan"), dtype=dtype, device=device)
    wide[:, :features] = values.to(device, dtype)
    return wide[:, :features]


def expected_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("features", [5, 64, 1100])
def test_norms(features: int, dtype: torch.dtype, triton_device: str) -> None:
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    x = rows_in_nan(3, features, dtype, triton_device)
    weight = 1 + torch.rand(features, device=triton_device)
    for weight_dtype in (dtype, torch.float32):
        weight = weight.to(weight_dtype)
        actual = rms_norm(x, weight, 1e-2)
        assert actual.dtype is dtype and actual.shape == x.shape
        torch.testing.assert_close(actual.double(), expected_norm(x, weight, 1e-2), **tolerance)
    residual = rows_in_nan(3, features, dtype, triton_device, seed=1).contiguous()
    total = residual + x
    actual = add_rms_norm(x, residual, weight, 1e-2)
    assert torch.equal(residual, total)
    assert torch.equal(actual, rms_norm(residual, weight, 1e-2))  # of what is kept, rounded
    torch.testing.assert_close(actual.double(), expected_norm(total, weight, 1e-2), **tolerance)
    residual, delta = (rows_in_nan(3, features, dtype, triton_device, seed=at) for at in (2, 3))
    residual = residual.contiguous()
    total = residual.double() + x.double() + delta.double()
    actual = add_rms_norm(x, residual, weight, 1e-2, delta)
    torch.testing.assert_close(residual.double(), total, **tolerance)
    assert torch.equal(actual, rms_norm(residual, weight, 1e-2))
    with pytest.raises(ValueError, match="delta"):
        add_rms_norm(x, residual, weight, 1e-2, delta[:, 1:])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("features", [5, 64])
def test_layer_norms(features: int, dtype: torch.dtype, triton_device: str) -> None:
    def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        scale, shift = weight.double()
        return F.layer_norm(x.double(), scale.shape, scale, shift, 1e-2)

    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    x = rows_in_nan(3, features, dtype, triton_device) + 2
    weight = torch.rand(2, features, device=triton_device)
    for weight_dtype in (dtype, torch.float32):
        weight = weight.to(weight_dtype)
        actual = layer_norm(x, weight, 1e-2)
        assert actual.dtype is dtype and actual.shape == x.shape
        torch.testing.assert_close(actual.double(), expected(x, weight), **tolerance)
    residual, delta = (rows_in_nan(3, features, dtype, triton_device, seed=at) for at in (2, 3))
    residual = residual.contiguous()
    total = residual.double() + x.double() + delta.double()
    actual = add_layer_norm(x, residual, weight, 1e-2, delta)
    torch.testing.assert_close(residual.double(), total, **tolerance)
    assert torch.equal(actual, layer_norm(residual, weight, 1e-2))
    with pytest.raises(ValueError, match="delta"):
        add_layer_norm(x, residual, weight, 1e-2, delta[:, 1:])


def test_norms_of_other_shapes(triton_device: str) -> None:
    x = rows_in_nan(6, 16, torch.float32, triton_device).contiguous().view(3, 2, 16)
    weight = torch.ones(16, device=triton_device)
    torch.testing.assert_close(
        rms_norm(x.transpose(0, 1), weight, 1e-5).double(),
        expected_norm(x.transpose(0, 1), weight, 1e-5),
        rtol=1e-5,
        atol=1e-5,
    )
    assert rms_norm(x[:0], weight, 1e-5).shape == (0, 2, 16)
    zeros = torch.zeros(1, 16, device=triton_device)
    assert bool((rms_norm(zeros, weight, 1e-6) == 0).all())
    with pytest.raises(ValueError, match="contiguous"):
        add_rms_norm(x[:, 0], x[:, 1], weight, 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activations(activation: str, dtype: torch.dtype, triton_device: str) -> None:
    gate_up = rows_in_nan(3, 2 * 37, dtype, triton_device)
    gate_up *= 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    actual = gated_activation(gate_up, activation)
    assert actual.dtype is dtype and actual.shape == (3, 37)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.double(), act * up, rtol=tolerance, atol=tolerance)
    assert gated_activation(gate_up[:0], activation).shape == (0, 37)
    delta = rows_in_nan(3, 2 * 37, dtype, triton_device, seed=1)
    gate, up = (gate_up.double() + delta.double()).chunk(2, dim=-1)
    act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    actual = gated_activation(gate_up, activation, delta)
    torch.testing.assert_close(actual.double(), act * up, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="delta"):
        gated_activation(gate_up, activation, delta[:2])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["gelu_tanh", "relu2"])
def test_activations_without_a_gate(kind: str, dtype: torch.dtype, triton_device: str) -> None:
    def expected(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh") if kind == "gelu_tanh" else F.relu(x) ** 2

    tolerance = TOLERANCES[dtype]
    x, delta = (4 * rows_in_nan(3, 37, dtype, triton_device, seed=at) for at in (0, 1))
    actual = plain_activation(x, kind)
    assert actual.dtype is dtype and actual.shape == (3, 37)
    torch.testing.assert_close(
        actual.double(), expected(x.double()), rtol=tolerance, atol=tolerance
    )
    actual, total = plain_activation(x, kind, delta), x.double() + delta.double()
    torch.testing.assert_close(actual.double(), expected(total), rtol=tolerance, atol=tolerance)
    assert plain_activation(x[:0], kind).shape == (0, 37)
    ends = torch.tensor([[-1e4, 0.0, 100.0, float("nan")]], device=triton_device)
    actual = plain_activation(ends, kind)[0].cpu()
    assert actual[:2].tolist() == [0.0, 0.0] and bool(actual[3].isnan())
    assert actual[2] == (100.0 if kind == "gelu_tanh" else 10_000.0)
    with pytest.raises(ValueError, match="delta"):
        plain_activation(x, kind, delta[:2])


def test_gated_activations_at_the_ends(triton_device: str) -> None:
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4])
    gate_up = torch.cat((gate, torch.ones(7))).view(1, -1).to(triton_device)
    for activation in ("silu", "gelu_tanh"):
        actual = gated_activation(gate_up, activation)[0].cpu()
        torch.testing.assert_close(actual, gate.clamp(min=0.0), rtol=0, atol=1e-6)
    nan = torch.full((1, 2), float("nan"), device=triton_device)
    assert bool(gated_activation(nan, "silu").isnan().all())
