"""GPTQ's checkpoints (Frantar et al. 2022), as AutoGPTQ and GPTQModel write them, 4 or 8 bits.

weight = (qweight - zero) * scales of the input's group in `g_idx`; a word has inputs in order, and
zeros have outputs in order. The first format stores zeros less one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from dataplane.models.quantization.description import (
    HEAD,
    Choice,
    Quantization,
    Scheme,
)
from dataplane.models.quantization.fields import Fields
from dataplane.models.quantization.groups import check_whole, count_groups, group_index
from dataplane.models.quantization.names import Matcher, check_expressions
from dataplane.models.quantization.packing import of_word_rows, values_of
from dataplane.models.quantization.stored import ModuleTensors
from kernels.quantized.matrix import QuantizedMatrix

METHOD = "gptq"
_INSIDE = "modules_in_block_to_quantize"
_LEFT_OUT = "-:"


def parse(fields: Fields) -> Quantization:
    """Raises: UnsupportedModelError."""
    bits = fields.number("bits", (4, 8))
    name = "checkpoint_format" if "checkpoint_format" in fields else "format"
    form = fields.choice(name, ("gptq", "gptq_v2"), "gptq")
    fields.choice("pack_dtype", ("int32",), "int32")
    fields.absent(
        *("is_marlin_format", "adapter", "rotation", "kv_cache_scheme", "sparsity_config")
    )
    size = fields.group_size("group_size", 128)
    ordered = fields.flag("desc_act", default=False)
    left_out: list[str] = []
    for pattern in fields.keys("dynamic"):
        if not pattern.startswith(_LEFT_OUT):
            raise fields.refusal("dynamic", "only modules that are left out, as '-:pattern'")
        left_out.append(pattern.removeprefix(_LEFT_OUT))
    check_expressions("quantization_config.dynamic", [f"re:{x}" for x in left_out], prefixed=True)
    scheme = Gptq(cast("Literal[4, 8]", bits), size, ordered, form == "gptq")
    return Quantization(METHOD, Selected(scheme, tuple(left_out), _inside(fields)))


def _inside(fields: Fields) -> tuple[str, ...] | None:
    lists: Any = fields.value(_INSIDE)
    if lists is None:
        return None
    if not isinstance(lists, list):
        raise fields.refusal(_INSIDE, "lists of modules' names")
    found: list[str] = []
    for each in cast("list[Any]", lists):
        for name in cast("list[Any]", each if isinstance(each, list) else [each]):
            if not isinstance(name, str) or len(found) > 1000:
                raise fields.refusal(_INSIDE, "lists of modules' names")
            found.append(name)
    return tuple(sorted(found))


@dataclass(frozen=True)
class Selected:
    scheme: Scheme
    left_out: tuple[str, ...]  # expressions
    inside: tuple[str, ...] | None  # of layers, those that are quantised; None: all

    def choose(self, module: str, matcher: Matcher) -> Choice:
        field = "quantization_config.dynamic"
        if any(matcher.begins(field, each, module) for each in self.left_out):
            return Choice(None)
        if module == HEAD:
            return Choice(self.scheme, is_sure=False)
        if self.inside is not None and not module.endswith(tuple(f".{x}" for x in self.inside)):
            return Choice(None)
        return Choice(self.scheme)


@dataclass(frozen=True)
class Gptq:
    bits: Literal[4, 8]
    group_size: int | None  # None: whole rows
    desc_act: bool  # the order of inputs is the checkpoint's own
    zeros_less_one: bool

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        outputs, inputs = shape
        per_word = 32 // self.bits
        check_whole(tensors, "qweight", shape, outputs=per_word, inputs=per_word)
        num_groups = count_groups(tensors, "qweight", inputs, self.group_size)
        words = tensors.take("qweight", (inputs // per_word, outputs), (torch.int32,))
        zeros = tensors.take("qzeros", (num_groups, outputs // per_word), (torch.int32,))
        scales = tensors.scales("scales", (num_groups, outputs))
        index = None
        if self.desc_act or "g_idx" in tensors:
            index = group_index(tensors, "g_idx", inputs, num_groups)
        if index is not None and not self.desc_act:
            raise tensors.invalid(
                "g_idx",
                "has inputs in an order of its own, but quantization_config's desc_act is false",
                "set desc_act to true if the checkpoint was made so",
            )
        return QuantizedMatrix(
            codes=of_word_rows(words),
            scales=scales,
            zeros=self._zeros(tensors, zeros),
            group_index=index,
            kind="uint4" if self.bits == 4 else "uint8",
            dtype=dtype,
        )

    def _zeros(self, tensors: ModuleTensors, words: torch.Tensor) -> torch.Tensor:
        zeros = values_of(words, self.bits)
        if not self.zeros_less_one:
            return zeros.contiguous()
        largest = (1 << self.bits) - 1
        if bool((zeros == largest).any()):
            raise tensors.invalid(
                "qzeros",
                f"has zero points stored as {largest}, which are 0 for some programs and"
                f" {largest + 1} for others",
                "save it in the format gptq_v2",
            )
        return zeros + 1
