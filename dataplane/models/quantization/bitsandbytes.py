"""bitsandbytes' checkpoints: QLoRA's 4 bits (Dettmers et al. 2023) and LLM.int8()'s 8.

4 bits: `weight` holds two codes a byte, the first one in the upper half; `weight.absmax` the scale
of each block of the flattened matrix. With double quantisation those are codes themselves:
absmax = nested_quant_map[code] * nested_absmax[of its block] + nested_offset, in float32.
8 bits: weight * SCB / 127 by rows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from dataplane.models.quantization.description import Quantization, Scheme, SkipList
from dataplane.models.quantization.fields import Fields
from dataplane.models.quantization.groups import check_whole
from dataplane.models.quantization.names import check_expressions
from dataplane.models.quantization.packing import swapped_halves, unsigned
from dataplane.models.quantization.stored import ModuleTensors
from kernels.quantized.matrix import TABLES, QuantizedMatrix

METHOD = "bitsandbytes"
_SKIPPED = "llm_int8_skip_modules"
_MAX_STATE_BYTES = 4096
_STATE = "weight.quant_state.bitsandbytes__"


def parse(fields: Fields) -> Quantization:
    """Raises: UnsupportedModelError."""
    four, eight = (
        fields.flag(f"load_in_{bits}bit", default=fields.flag(f"_load_in_{bits}bit", default=False))
        for bits in (4, 8)
    )
    if four == eight:
        raise fields.refusal("load_in_4bit", "true, or else load_in_8bit")
    fields.absent("llm_int8_has_fp16_weight")
    scheme: Scheme = Int8()
    if four:
        fields.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")
        kind = fields.choice("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
        nested = fields.flag("bnb_4bit_use_double_quant", default=False)
        scheme = FourBit(cast("Literal['nf4', 'fp4']", kind), nested)
    skipped = fields.names(_SKIPPED) or ()
    check_expressions(f"quantization_config.{_SKIPPED}", skipped, prefixed=False)
    return Quantization(METHOD, SkipList(scheme, f"quantization_config.{_SKIPPED}", skipped))


@dataclass(frozen=True)
class FourBit:
    kind: Literal["nf4", "fp4"]
    nested: bool

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        outputs, inputs = shape
        block, state = self._state(tensors, shape)
        self._check_table(tensors)
        check_whole(tensors, "weight", shape, inputs=2)
        flat = outputs * inputs // 2
        codes = tensors.take("weight", (flat, 1), (torch.uint8,)).view(outputs, inputs // 2)
        num_blocks = outputs * inputs // block
        scales = (
            self._nested(tensors, num_blocks, state)
            if self.nested
            else tensors.scales("weight.absmax", (num_blocks,)).float()
        )
        return QuantizedMatrix(
            codes=swapped_halves(codes),
            scales=scales.view(outputs, inputs // block).T.contiguous(),
            zeros=None,
            group_index=None,
            kind=self.kind,
            dtype=dtype,
        )

    def _state(self, tensors: ModuleTensors, shape: torch.Size) -> tuple[int, dict[str, Any]]:
        """The size of blocks, and all that the JSON says."""
        name = f"{_STATE}{self.kind}"
        if (size := tensors.size(name)) > _MAX_STATE_BYTES:
            raise tensors.invalid(name, f"has {size} bytes")
        data = tensors.take(name, (size,), (torch.uint8,))
        try:
            found = json.loads(bytes(cast("Any", data.numpy())))
        except (ValueError, RecursionError):
            raise tensors.invalid(name, "is not JSON") from None
        state = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        if state.get("shape") != list(shape) or state.get("quant_type") != self.kind:
            raise tensors.invalid(
                name,
                f"is of a {str(state.get('quant_type'))[:40]} matrix"
                f" {str(state.get('shape'))[:80]}, not of a {self.kind} one {list(shape)}",
            )
        block = _size(tensors, name, state, "blocksize")
        if shape[1] % block:
            raise tensors.invalid(
                name,
                f"has blocksize {block}, and rows of {shape[1]} are no multiple of it",
                "quantise it with a block size that divides the rows, as 64",
            )
        return block, state

    def _check_table(self, tensors: ModuleTensors) -> None:
        name = "weight.quant_map"
        table = tensors.take(name, (16,), (torch.float32,))
        known = torch.tensor(TABLES[self.kind], dtype=torch.float32)
        if not torch.allclose(table, known, rtol=0, atol=1e-6):
            raise tensors.invalid(name, f"is not the table of {self.kind}")

    def _nested(
        self, tensors: ModuleTensors, num_blocks: int, state: dict[str, Any]
    ) -> torch.Tensor:
        name = f"{_STATE}{self.kind}"
        block = _size(tensors, name, state, "nested_blocksize")
        offset = state.get("nested_offset")
        if (
            isinstance(offset, bool)
            or not isinstance(offset, int | float)
            or not abs(offset) < torch.finfo(torch.float32).max
        ):
            raise tensors.invalid(name, f"has nested_offset {str(offset)[:40]}")
        codes = tensors.take("weight.absmax", (num_blocks,), (torch.uint8,))
        table = tensors.scales("weight.nested_quant_map", (256,)).float()
        of_blocks = tensors.scales("weight.nested_absmax", (math.ceil(num_blocks / block),))
        scales = of_blocks.float().repeat_interleave(min(block, num_blocks))[:num_blocks]
        scales.mul_(table[codes.int()]).add_(offset)
        if not bool(scales.isfinite().all()):
            raise tensors.invalid("weight.nested_absmax", "gives scales that are infinite")
        return scales


@dataclass(frozen=True)
class Int8:
    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        codes = tensors.take("weight", shape, (torch.int8,))
        scales = tensors.scales("SCB", (shape[0],)).float() / 127
        if "weight_format" in tensors:
            layout = tensors.take("weight_format", ((), (1,)), (torch.uint8, torch.int8))
            if bool(layout.any()):
                raise tensors.invalid(
                    "weight_format",
                    "says that the weight is in the order of an old GPU",
                    "save it with a newer bitsandbytes, which stores rows",
                )
        return QuantizedMatrix(unsigned(codes), scales.view(1, -1), None, None, "uint8", dtype)


def _size(tensors: ModuleTensors, name: str, state: dict[str, Any], field: str) -> int:
    value = state.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise tensors.invalid(name, f"has {field} {str(value)[:40]}")
    return value
