"""How compressed-tensors stores a matrix.

pack-quantized: `weight_packed`, words along the inputs; zero points in words along the outputs.
int-quantized: `weight` in int8. float-quantized: `weight` in float8_e4m3.
weight = (code - weight_zero_point) * weight_scale of its tensor, output, group or block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from dataplane.models.quantization.fp8 import SCALAR, float8_codes, grid, spread
from dataplane.models.quantization.groups import check_whole, count_groups, group_index
from dataplane.models.quantization.packing import of_words, unsigned, values_of
from dataplane.models.quantization.stored import ACTIVATIONS, ModuleTensors
from kernels.quantized.matrix import QuantizedMatrix

_ZEROS = "weight_zero_point"


@dataclass(frozen=True)
class Packed:
    bits: Literal[4, 8]
    group_size: int | None  # None: whole rows
    symmetric: bool
    indexed: bool  # the group of each input is stored

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        outputs, inputs = shape
        per_word = 32 // self.bits
        check_whole(tensors, "weight_packed", shape, inputs=8 // self.bits)
        stored = tensors.take("weight_shape", (2,), (torch.int64, torch.int32))
        if stored.tolist() != list(shape):
            raise tensors.invalid(
                "weight_shape", f"is {stored.tolist()}; config.json says {list(shape)}"
            )
        num_groups = count_groups(tensors, "weight_packed", inputs, self.group_size)
        words = tensors.take(
            "weight_packed", (outputs, math.ceil(inputs / per_word)), (torch.int32,)
        )
        scales = tensors.scales("weight_scale", (outputs, num_groups)).T.contiguous()
        zeros = None
        if not self.symmetric:
            packed = tensors.take(
                _ZEROS, (math.ceil(outputs / per_word), num_groups), (torch.int32,)
            )
            zeros = values_of(packed.T, self.bits)[:, :outputs].contiguous()
        elif _ZEROS in tensors:
            _check_no_zeros(tensors, ((outputs, num_groups),))
        tensors.ignore(*ACTIVATIONS)
        return QuantizedMatrix(
            codes=of_words(words, inputs * self.bits // 8),
            scales=scales,
            zeros=zeros,
            group_index=self._index(tensors, inputs, num_groups),
            kind="uint4" if self.bits == 4 else "uint8",
            dtype=dtype,
        )

    def _index(self, tensors: ModuleTensors, inputs: int, num_groups: int) -> torch.Tensor | None:
        name = "weight_g_idx"
        if not self.indexed:
            return None
        index = group_index(tensors, name, inputs, num_groups)
        if index is None:
            return None
        counts = torch.bincount(index, minlength=num_groups)
        if not bool((counts == inputs // num_groups).all()):
            raise tensors.invalid(name, f"has groups that are not of {self.group_size} inputs each")
        return index


@dataclass(frozen=True)
class Int8:
    strategy: str  # tensor, channel or group
    group_size: int | None
    symmetric: bool

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        codes = tensors.take("weight", shape, (torch.int8,))
        shapes = _scale_shapes(tensors, shape, self.strategy, self.group_size)
        scales = _by_groups(tensors.scales("weight_scale", shapes), shape)
        zeros = None
        if not self.symmetric:
            found = tensors.take(_ZEROS, shapes, (torch.int8,))
            zeros = unsigned(_by_groups(found, shape))
        elif _ZEROS in tensors:
            _check_no_zeros(tensors, shapes)
        tensors.ignore(*ACTIVATIONS)
        return QuantizedMatrix(unsigned(codes), scales, zeros, None, "uint8", dtype)


@dataclass(frozen=True)
class Float8:
    strategy: str  # tensor, channel, group or block
    group_size: int | None
    block: tuple[int, int] | None

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        codes = float8_codes(tensors, shape)
        index = None
        if self.block is not None:
            shapes = (grid(shape, self.block),)
            scales, index = spread(tensors.scales("weight_scale", shapes), shape, self.block)
        else:
            shapes = _scale_shapes(tensors, shape, self.strategy, self.group_size)
            scales = _by_groups(tensors.scales("weight_scale", shapes), shape)
        if _ZEROS in tensors:
            _check_no_zeros(tensors, shapes)
        tensors.ignore(*ACTIVATIONS)
        return QuantizedMatrix(codes, scales, None, index, "float8_e4m3", dtype)


def _scale_shapes(
    tensors: ModuleTensors, shape: torch.Size, strategy: str, group_size: int | None
) -> tuple[tuple[int, ...], ...]:
    if strategy == "tensor":
        return SCALAR
    return ((shape[0], count_groups(tensors, "weight", shape[1], group_size)),)


def _by_groups(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[out, num_groups], or one for all -> [num_groups, out]"""
    if values.numel() == 1:
        return values.view(1, 1).expand(1, shape[0]).contiguous()
    return values.T.contiguous()


def _check_no_zeros(tensors: ModuleTensors, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Earlier versions store zero points that are all 0 where there are none."""
    found = tensors.take(_ZEROS, shapes, (torch.int8, torch.float8_e4m3fn))
    if bool(found.view(torch.uint8).any()):
        raise tensors.invalid(
            _ZEROS, "is not 0, but quantization_config says symmetric", "set symmetric to false"
        )
