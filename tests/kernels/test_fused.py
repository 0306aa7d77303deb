"""Norms and activations against float64, on every device and in every dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kernels.cpu import threads
from kernels.fused import cpu, naive
from kernels.fused.op import (
    add_layer_norm,
    add_rms_norm,
    gated_activation,
    layer_norm,
    plain_activation,
    rms_norm,
)

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}
SIZES = [(1, 5), (3, 64), (1030, 33)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_norms(
    rows: int, features: int, weight_dtype: torch.dtype | None, dtype: torch.dtype, device: str
) -> None:
    x, residual = (normal(rows, features, seed=s).to(device, dtype) for s in (1, 2))
    weight = normal(features, seed=3).to(device, weight_dtype or dtype)
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    actual = rms_norm(x, weight, 1e-5)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.double(), expected_norm(x, weight, 1e-5), **tolerance)
    total = residual + x
    actual = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    torch.testing.assert_close(actual.double(), expected_norm(total, weight, 1e-5), **tolerance)


def expected_layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide, (scale, shift) = x.double(), weight.double()
    return F.layer_norm(wide, scale.shape, scale, shift, eps)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_layer_norms(
    rows: int, features: int, weight_dtype: torch.dtype | None, dtype: torch.dtype, device: str
) -> None:
    x, residual = (3 + normal(rows, features, seed=s).to(device, dtype) for s in (1, 2))
    weight = normal(2, features, seed=3).to(device, weight_dtype or dtype)
    tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    expected = expected_layer_norm(x, weight, 0.1)
    for actual in (layer_norm(x, weight, 0.1), naive.layer_norm(x, weight, 0.1)):
        assert actual.dtype is dtype
        torch.testing.assert_close(actual.double(), expected, **tolerance)
    total = residual + x
    actual = add_layer_norm(x, residual, weight, 0.1)
    assert torch.equal(residual, total)
    expected = expected_layer_norm(total, weight, 0.1)
    torch.testing.assert_close(actual.double(), expected, **tolerance)


def test_norm_of_zeros_and_of_huge_rows(device: str) -> None:
    x = torch.stack((torch.zeros(16), torch.full((16,), 1e15))).to(device)
    actual = rms_norm(x, torch.ones(16, device=device), 1e-6)
    assert bool((actual[0] == 0).all())
    torch.testing.assert_close(actual[1], torch.ones(16, device=device))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_gated_activations(
    rows: int, features: int, activation: str, dtype: torch.dtype, device: str
) -> None:
    gate_up = (4 * normal(rows, 2 * features)).to(device, dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    actual = gated_activation(gate_up, activation)
    assert actual.dtype is dtype and actual.shape == (rows, features)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.double(), act * up, rtol=tolerance, atol=tolerance)


def test_gated_activations_at_the_ends(device: str) -> None:
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4])
    gate_up = torch.cat((gate, torch.ones(7))).view(1, -1).to(device)
    for activation in ("silu", "gelu_tanh"):
        actual = gated_activation(gate_up, activation)[0].cpu()
        torch.testing.assert_close(actual, gate.clamp(min=0.0), rtol=0, atol=1e-6)
    nan = torch.full((1, 2), float("nan"), device=device)
    assert bool(gated_activation(nan, "silu").isnan().all())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["gelu_tanh", "relu2"])
@pytest.mark.parametrize(("rows", "features"), SIZES)
def test_activations_without_a_gate(
    rows: int, features: int, kind: str, dtype: torch.dtype, device: str
) -> None:
    x = (4 * normal(rows, features)).to(device, dtype)
    wide = x.double()
    expected = F.gelu(wide, approximate="tanh") if kind == "gelu_tanh" else F.relu(wide) ** 2
    tolerance = TOLERANCES[dtype]
    for actual in (plain_activation(x, kind), naive.plain_activation(x, kind)):
        assert actual.dtype is dtype and actual.shape == x.shape
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    ends = torch.tensor([[-1e4, 0.0, 100.0, float("nan")]], device=device)
    actual = plain_activation(ends, kind)[0].cpu()
    assert actual[:2].tolist() == [0.0, 0.0] and bool(actual[3].isnan())
    assert actual[2] == (100.0 if kind == "gelu_tanh" else 10_000.0)


def test_misfits_are_refused() -> None:
    x = torch.zeros(2, 4)
    for call in (
        lambda: rms_norm(x, torch.zeros(3), 1e-5),
        lambda: add_rms_norm(x, torch.zeros(1, 4), torch.zeros(4), 1e-5),
        lambda: add_rms_norm(x, x.double(), torch.zeros(4), 1e-5),
        lambda: add_rms_norm(x, torch.zeros(4, 2).T, torch.zeros(4), 1e-5),
        lambda: rms_norm(x, torch.zeros(4, 2)[:, 0], 1e-5),
        lambda: gated_activation(torch.zeros(2, 3), "silu"),
        lambda: gated_activation(x, "relu"),
        lambda: plain_activation(x, "silu"),
        lambda: plain_activation(x[0], "relu2"),
        lambda: layer_norm(x, torch.zeros(4), 1e-5),
        lambda: rms_norm(x, torch.zeros(2, 4), 1e-5),
        lambda: layer_norm(x, torch.zeros(2, 3), 1e-5),
        lambda: add_layer_norm(x, torch.zeros(1, 4), torch.zeros(2, 4), 1e-5),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_place_on_cpu_gives_the_same_bits(weight_dtype: torch.dtype) -> None:
    """The program of layers norms in place what the ops called one by one write elsewhere."""
    x, weight = normal(500, 768).bfloat16(), normal(768, seed=1).to(weight_dtype)
    expected, eps = rms_norm(x, weight, 1e-6), np.array([1e-6], dtype=np.float32)
    address = x.data_ptr()
    arguments = cpu.norm_arguments(
        500, 768, address, 0, weight.data_ptr(), eps.ctypes.data, address, 0
    )
    threads.run(cpu.norm_worker(torch.bfloat16, weight_dtype), np.array(arguments))
    assert torch.equal(x, expected)
