"""The two files that make an adapter, read whole."""

from __future__ import annotations

from dataclasses import dataclass

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """`uri`: where they were read from, for messages only; never part of an identity."""

    config: bytes
    weights: bytes
    uri: str

    @property
    def size_bytes(self) -> int:
        return len(self.config) + len(self.weights)
