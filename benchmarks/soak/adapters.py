"""The voices of a soak: every kind of adapter, and some that must fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.models import ALL_LINEAR, ATTENTION, Shape
from benchmarks.session import adapter_at
from dataplane.channel import Adapter

RANKS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)
KINDS = ("lora", "dora", "lora_bias")
_UPDATE_STD = 0.08  # of the elements of B @ A: enough to change nearly every answer
_RUINOUS = 1e30  # finite in the file, infinite in the product


@dataclass(frozen=True)
class Voices:
    """good: all can be served. ruined: they load, and their logits are not finite. unloadable:
    their source is not there, or is not what was registered."""

    good: tuple[Adapter, ...]
    ruined: tuple[Adapter, ...]
    unloadable: tuple[Adapter, ...]


def write_voices(folder: Path, shape: Shape, *, num_good: int, ranks: Sequence[int]) -> Voices:
    """Ranks, kinds and targets in turn, so that they meet in all combinations."""
    good: list[Adapter] = []
    for index in range(num_good):
        path = folder / f"v{index:03}"
        write_voice(
            path,
            shape,
            rank=ranks[index % len(ranks)],
            kind=KINDS[index % len(KINDS)],
            targets=ALL_LINEAR if index % 2 else ATTENTION,
            seed=index,
        )
        good.append(adapter_at(path))
    write_voice(folder / "ruined", shape, rank=4, kind="lora", targets=ATTENTION, seed=1)
    _ruin(folder / "ruined")
    ruined = adapter_at(folder / "ruined")
    changed = Adapter("0" * 64, good[0].source, "changed")
    missing = Adapter("1" * 64, str(folder / "nowhere"), "missing")
    return Voices(tuple(good), (ruined,), (changed, missing))


def write_voice(
    directory: Path, shape: Shape, *, rank: int, kind: str, targets: Sequence[str], seed: int
) -> None:
    """A PEFT adapter of one of KINDS, float32, strong enough to be heard."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    std = (_UPDATE_STD / rank**0.5) ** 0.5
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.num_layers):
        for module, (in_features, out_features) in shape.projections().items():
            if module.split(".")[1] not in targets:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a = torch.randn(rank, in_features, generator=generator) * std
            b = torch.randn(out_features, rank, generator=generator) * std
            tensors[f"{prefix}.lora_A.weight"] = a
            tensors[f"{prefix}.lora_B.weight"] = b
            if kind == "dora":
                spread = torch.rand(out_features, generator=generator)
                tensors[f"{prefix}.lora_magnitude_vector"] = 0.7 + 0.7 * spread
            if kind == "lora_bias":
                bias = torch.randn(out_features, generator=generator) * 0.2
                tensors[f"{prefix}.lora_B.bias"] = bias
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "use_dora": kind == "dora",
        "lora_bias": kind == "lora_bias",
        "inference_mode": True,
        "target_modules": sorted(targets),
        "base_model_name_or_path": "",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _ruin(directory: Path) -> None:
    from safetensors.torch import load_file

    file = directory / "adapter_model.safetensors"
    tensors = {name: torch.full_like(each, _RUINOUS) for name, each in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
