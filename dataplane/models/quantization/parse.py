"""Reads a config.json's quantization_config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dataplane.models.quantization import awq, bitsandbytes, compressed, fp8, gptq
from dataplane.models.quantization.description import Quantization
from dataplane.models.quantization.fields import Fields

_NAMES = ("quantization_config", "compression_config")
_METHODS: Mapping[str, Callable[[Fields], Quantization]] = {
    module.METHOD: module.parse for module in (awq, bitsandbytes, compressed, fp8, gptq)
}


def parse_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """config: as in config.json. None: the checkpoint is not quantised.

    Raises: UnsupportedModelError, by field and value.
    """
    name = next((each for each in _NAMES if config.get(each)), None)
    if name is None:
        return None
    fields = Fields(config[name], name)
    if "quant_method" not in fields and (  # as transformers' earlier versions wrote it
        fields.value("load_in_4bit") is True or fields.value("load_in_8bit") is True
    ):
        return bitsandbytes.parse(fields)
    return _METHODS[fields.choice("quant_method", tuple(sorted(_METHODS)))](fields)
