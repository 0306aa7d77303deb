"""What a stack of layers reads of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kernels.linear import cpu as linear
from kernels.linear.op import Weight


class Layer(Protocol):
    """Weights of one layer, as `dataplane.models.weights.LayerWeights`, packed."""

    @property
    def input_norm(self) -> torch.Tensor | None: ...
    @property
    def qkv(self) -> Weight: ...
    @property
    def qkv_bias(self) -> torch.Tensor | None: ...
    @property
    def q_norm(self) -> torch.Tensor | None: ...
    @property
    def k_norm(self) -> torch.Tensor | None: ...
    @property
    def o(self) -> Weight: ...
    @property
    def o_bias(self) -> torch.Tensor | None: ...
    @property
    def attention_out_norm(self) -> torch.Tensor | None: ...
    @property
    def mlp_norm(self) -> torch.Tensor | None: ...
    @property
    def gate_up(self) -> Weight | None: ...
    @property
    def gate_up_bias(self) -> torch.Tensor | None: ...
    @property
    def down(self) -> Weight | None: ...
    @property
    def down_bias(self) -> torch.Tensor | None: ...
    @property
    def mlp_out_norm(self) -> torch.Tensor | None: ...
    @property
    def experts(self) -> object | None: ...


NORMS = ("input_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
NAMES = (
    *("input_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "o", "o_bias", "attention_out_norm"),
    *("mlp_norm", "gate_up", "gate_up_bias", "down", "down_bias", "mlp_out_norm"),
)


def supports(layers: Sequence[Layer], head: Weight) -> bool:
    """Whether all weights have layouts of kernels.linear.cpu, and no layer has experts."""
    return linear.is_packed(head) and all(
        linear.is_packed(weight) and layer.experts is None
        for layer in layers
        for weight in (layer.qkv, layer.o, layer.gate_up, layer.down)
    )


def address(tensor: torch.Tensor | None) -> int:
    """0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
