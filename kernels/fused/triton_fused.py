"""Norms and activations by Triton kernels: CUDA and ROCm."""

from kernels.fused.triton_activation import gated_activation, plain_activation
from kernels.fused.triton_norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "gated_activation",
    "layer_norm",
    "plain_activation",
    "rms_norm",
]
