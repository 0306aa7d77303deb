"""Norms and gated activations by Triton kernels: CUDA and ROCm."""

from kernels.fused.triton_activation import gated_activation
from kernels.fused.triton_norm import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "gated_activation", "rms_norm"]
