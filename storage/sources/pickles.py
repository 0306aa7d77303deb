"""Weights as pickle, which no source reads."""

from __future__ import annotations

from storage.errors import PickleRefusedError, excerpt
from storage.files import WEIGHTS_NAME

PICKLE_NAME = "adapter_model.bin"
"""What older versions of PEFT write."""


def pickle_only(source: str, name: str = PICKLE_NAME) -> PickleRefusedError:
    """To be raised where a source has the pickle `name`, and no safetensors file."""
    return PickleRefusedError(
        f"source {excerpt(source)} has {name} but no {WEIGHTS_NAME}; pickle is never read. Convert "
        "it with safetensors.torch.save_file, or save the adapter again with "
        "safe_serialization=True",
        metadata={"file": name},
    )
