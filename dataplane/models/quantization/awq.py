"""AWQ's checkpoints (Lin et al. 2023), in AutoAWQ's "gemm" layout of 4 bits.

weight = (qweight - qzeros) * scales, by groups of inputs; a word has eight outputs, interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dataplane.models.quantization.description import Quantization, SkipList
from dataplane.models.quantization.fields import Fields
from dataplane.models.quantization.groups import check_whole, count_groups
from dataplane.models.quantization.names import check_expressions
from dataplane.models.quantization.packing import awq_values, of_awq
from dataplane.models.quantization.stored import ModuleTensors
from kernels.quantized.matrix import QuantizedMatrix

METHOD = "awq"
_SKIPPED = "modules_to_not_convert"


def parse(fields: Fields) -> Quantization:
    """Raises: UnsupportedModelError."""
    fields.number("bits", (4,), 4)
    fields.choice("version" if "version" in fields else "format", ("gemm",), "gemm")
    if not fields.flag("zero_point", default=True):
        raise fields.refusal("zero_point", "true")
    fields.absent("dynamic", "kv_cache_scheme", "sparsity_config")
    size = fields.group_size("group_size", 128)
    skipped = fields.names(_SKIPPED) or ()
    check_expressions(f"quantization_config.{_SKIPPED}", skipped, prefixed=False)
    return Quantization(METHOD, SkipList(Awq(size), f"quantization_config.{_SKIPPED}", skipped))


@dataclass(frozen=True)
class Awq:
    group_size: int | None  # None: whole rows

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        outputs, inputs = shape
        check_whole(tensors, "qweight", shape, outputs=8, inputs=2)
        num_groups = count_groups(tensors, "qweight", inputs, self.group_size)
        words = tensors.take("qweight", (inputs, outputs // 8), (torch.int32,))
        zeros = tensors.take("qzeros", (num_groups, outputs // 8), (torch.int32,))
        scales = tensors.scales("scales", (num_groups, outputs))
        return QuantizedMatrix(
            of_awq(words), scales, awq_values(zeros).contiguous(), None, "uint4", dtype
        )
