"""The two files that make an adapter, read whole."""

from __future__ import annotations

from dataclasses import dataclass

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the page that a hub shows of an adapter says. base_model: "" when it names none.
    is_lora: whether it is tagged as a LoRA adapter."""

    base_model: str
    is_lora: bool


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """`uri`: where they were read from, for messages only; never part of an identity. `card`: of a
    source that has such a thing."""

    config: bytes
    weights: bytes | memoryview
    uri: str
    card: ModelCard | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.config) + len(self.weights)
