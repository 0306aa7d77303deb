"""An adapter's identity: a digest of what it computes, never of its name or path.

sha256 over a tag, a canonical JSON description and the tensors' raw bytes, in the order of the
description, which fixes every length. The description holds, per module, the effective rank and
scaling (so r, lora_alpha, their patterns and use_rslora count only by what they do) and the
fields that select modules (they decide whether the file is complete for a base model).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from storage import pace
from storage.adapter.config import AdapterConfig
from storage.adapter.weights import TensorRef

_TAG = b"chorale-adapter-1\n"

_PIECE_BYTES = 1 << 20


def adapter_digest(
    config: AdapterConfig,
    modules: Sequence[tuple[str, int, float, Mapping[str, TensorRef]]],
    biases: Mapping[str, TensorRef],
    outer: Mapping[str, TensorRef],
    weights: memoryview,
) -> str:
    """64 hex characters.

    modules: (full name, rank, scaling, tensors by their name in PEFT). biases: full name → trained
    base bias. outer: name → other tensors outside the layers. Reads all tensor bytes in place;
    hashlib lets other threads run meanwhile.
    """
    tensors: list[tuple[str, TensorRef]] = list(outer.items())
    tensors += [(f"{name}.bias", ref) for name, ref in biases.items()]
    for name, _, _, parts in modules:
        tensors += [(f"{name}.{part}", ref) for part, ref in parts.items()]
    tensors.sort(key=lambda item: item[0])
    description: dict[str, object] = {
        "modules": sorted([name, rank, scaling] for name, rank, scaling, _ in modules),
        "selection": {
            "target_modules": _unordered(config.target_modules),
            "exclude_modules": _unordered(config.exclude_modules),
            "layers_to_transform": _unordered(config.layers_to_transform),
            "layers_pattern": list(config.layers_pattern),
        },
        "tensors": [[name, ref.dtype, list(ref.shape)] for name, ref in tensors],
    }
    if config.target_parameters:
        description["target_parameters"] = _unordered(config.target_parameters)
    if config.bias != "none":  # left out of plain LoRA, whose digests are older than the field
        description["bias"] = config.bias
    if config.modules_to_save:
        description["modules_to_save"] = list(config.modules_to_save)
    if config.trained_tokens:
        description["trained_tokens"] = {k: list(v) for k, v in config.trained_tokens.items()}
    if config.ensure_weight_tying:
        description["ensure_weight_tying"] = True
    if config.invocation_tokens:
        description["invocation_tokens"] = list(config.invocation_tokens)
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    hasher = hashlib.sha256(_TAG)
    hasher.update(len(text).to_bytes(8, "little"))
    hasher.update(text)
    for _, ref in tensors:
        for start in range(ref.start, ref.end, _PIECE_BYTES):
            hasher.update(weights[start : min(start + _PIECE_BYTES, ref.end)])
            pace.rest()
    return hasher.hexdigest()


def _unordered(value: str | int | tuple[str, ...] | tuple[int, ...] | None) -> object:
    # PEFT keeps these as sets and saves them in any order.
    return sorted(set(value)) if isinstance(value, tuple) else value
