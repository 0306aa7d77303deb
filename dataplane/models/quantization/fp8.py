"""FP8 checkpoints: weights in float8_e4m3, with a scale for each block (DeepSeek's and Qwen's,
`weight_scale_inv`) or one for each matrix (`weight_scale`). Either is what weights are multiplied
with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dataplane.models.quantization.description import Quantization, SkipList
from dataplane.models.quantization.fields import Fields
from dataplane.models.quantization.names import check_expressions
from dataplane.models.quantization.stored import ACTIVATIONS, ModuleTensors
from kernels.quantized.matrix import QuantizedMatrix

METHOD = "fp8"
_SKIPPED = ("modules_to_not_convert", "ignored_layers")
_KNOWN = (
    *("quant_method", "activation_scheme", "weight_block_size", "scale_fmt", "fmt"),
    *("expert_dtype", "dequantize", *_SKIPPED),
)
_NAN = 0x7F  # without the sign; there are no infinities
SCALAR = ((), (1,))


def parse(fields: Fields) -> Quantization:
    """Raises: UnsupportedModelError."""
    fields.only(_KNOWN)
    fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    fields.choice("scale_fmt", ("float", "ue8m0"), "float")
    fields.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    fields.choice("expert_dtype", ("fp8",), "fp8")
    block = fields.block("weight_block_size")
    name = _SKIPPED[0] if _SKIPPED[0] in fields else _SKIPPED[1]
    skipped = fields.names(name) or ()
    check_expressions(f"quantization_config.{name}", skipped, prefixed=False)
    return Quantization(METHOD, SkipList(Fp8(block), f"quantization_config.{name}", skipped))


@dataclass(frozen=True)
class Fp8:
    block: tuple[int, int] | None  # rows and columns; None: the whole matrix

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        codes = float8_codes(tensors, shape)
        tensors.ignore(*ACTIVATIONS)
        name = "weight_scale" if "weight_scale" in tensors else "weight_scale_inv"
        shapes = SCALAR if self.block is None else grid(shape, self.block)
        scales, index = spread(tensors.scales(name, shapes), shape, self.block)
        return QuantizedMatrix(codes, scales, None, index, "float8_e4m3", dtype)


def grid(shape: torch.Size, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks there are by rows and columns; the last ones may be smaller."""
    return math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1])


def spread(
    scales: torch.Tensor, shape: torch.Size, block: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales of blocks, or one of the matrix, as those of QuantizedMatrix, and its group_index."""
    outputs, inputs = shape
    if block is None:
        return scales.view(1, 1).expand(1, outputs).contiguous(), None
    rows, columns = min(block[0], outputs), min(block[1], inputs)
    by_outputs = scales.T.repeat_interleave(rows, 1)[:, :outputs].contiguous()
    if inputs % columns == 0:
        return by_outputs, None
    return by_outputs, torch.arange(inputs, dtype=torch.int32) // columns


def float8_codes(tensors: ModuleTensors, shape: torch.Size) -> torch.Tensor:
    """Raises: CheckpointError."""
    codes = tensors.take("weight", shape, (torch.float8_e4m3fn,)).view(torch.uint8)
    if any(bool(((rows & _NAN) == _NAN).any()) for rows in codes.split(1024)):
        raise tensors.invalid("weight", "has weights that are NaN")
    return codes
