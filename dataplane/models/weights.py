"""Base weights: read from safetensors straight into the fused layout, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dataplane.errors import CheckpointError
from dataplane.models.config import ModelConfig


@dataclass
class LayerWeights:
    """One decoder layer, dtype and device of the model."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [q + 2 kv, hidden]
    qkv_bias: torch.Tensor | None  # [q + 2 kv]
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None  # [head_dim]
    o: torch.Tensor  # [hidden, q]
    o_bias: torch.Tensor | None  # [hidden]
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 intermediate, hidden]
    gate_up_bias: torch.Tensor | None  # [2 intermediate]
    down: torch.Tensor  # [hidden, intermediate]
    down_bias: torch.Tensor | None  # [hidden]


@dataclass
class ModelWeights:
    embed: torch.Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    norm: torch.Tensor  # [hidden]
    lm_head: torch.Tensor  # [vocab, hidden]; the same tensor as `embed` when tied


def load_weights(
    model_dir: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ModelWeights:
    """Raises: CheckpointError when a tensor is missing or has another shape."""
    with ExitStack() as stack:
        return _assemble(_Checkpoint(model_dir, stack), config, dtype, device)


def fingerprint(config: ModelConfig) -> str:
    """Hex SHA-256 over the shape of the model: equal for data planes that adapters can share."""
    return hashlib.sha256(repr(config).encode()).hexdigest()


class _Checkpoint:
    """Tensor by name over one or many memory-mapped safetensors files."""

    def __init__(self, model_dir: Path, stack: ExitStack) -> None:
        self._readers: dict[str, Callable[[str], torch.Tensor]] = {}
        files = sorted(_files(model_dir))
        if not files:
            raise CheckpointError(
                "CHECKPOINT_MISSING",
                f"{model_dir} holds no model.safetensors (pickled weights are never read)",
                {"model": str(model_dir)},
            )
        for path in files:
            try:
                reader = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    "CHECKPOINT_UNREADABLE", f"{path.name}: {error}", {"file": path.name}
                ) from None
            for name in reader.keys():  # noqa: SIM118 - a reader is no mapping
                self._readers[name] = reader.get_tensor

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        read = self._readers.get(name)
        if read is None:
            raise CheckpointError(
                "TENSOR_MISSING", f"the checkpoint has no tensor {name}", {"tensor": name}
            )
        source = read(name)
        if source.shape != target.shape:
            raise CheckpointError(
                "TENSOR_SHAPE",
                f"{name} is {list(source.shape)}; config.json says {list(target.shape)}",
                {"tensor": name},
            )
        target.copy_(source)


def _files(model_dir: Path) -> Iterator[Path]:
    index = model_dir / "model.safetensors.index.json"
    if not index.is_file():
        single = model_dir / "model.safetensors"
        if single.is_file():
            yield single
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise CheckpointError(
            "CHECKPOINT_UNREADABLE", f"{index.name} has no weight_map", {"file": index.name}
        ) from None
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                "CHECKPOINT_UNREADABLE", f"{index.name} points outside: {name}", {"file": name}
            )
        yield model_dir / name


def _assemble(
    checkpoint: _Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ModelWeights:
    def fused(*parts: tuple[str, int], width: int | None) -> torch.Tensor:
        """Stacks the named tensors of [rows, width] (or [rows]) in one allocation."""
        rows = sum(count for _, count in parts)
        shape = (rows,) if width is None else (rows, width)
        target = torch.empty(shape, dtype=dtype, device=device)
        start = 0
        for name, count in parts:
            checkpoint.copy_into(target[start : start + count], name)
            start += count
        return target

    def layer(index: int) -> LayerWeights:
        prefix = f"model.layers.{index}."
        hidden, inter = config.hidden_size, config.intermediate_size
        qkv = [
            (f"{prefix}self_attn.{name}_proj", size)
            for name, size in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size))
        ]
        o = [(f"{prefix}self_attn.o_proj", hidden)]
        gate_up = [(f"{prefix}mlp.{name}_proj", inter) for name in ("gate", "up")]
        down = [(f"{prefix}mlp.down_proj", hidden)]

        def weight(modules: list[tuple[str, int]], width: int) -> torch.Tensor:
            return fused(*((f"{name}.weight", rows) for name, rows in modules), width=width)

        def bias(modules: list[tuple[str, int]], present: bool) -> torch.Tensor | None:
            if not present:
                return None
            return fused(*((f"{name}.bias", rows) for name, rows in modules), width=None)

        def norm(name: str, size: int, present: bool = True) -> torch.Tensor | None:
            return fused((f"{prefix}{name}.weight", size), width=None) if present else None

        input_norm = norm("input_layernorm", hidden)
        post_norm = norm("post_attention_layernorm", hidden)
        assert input_norm is not None and post_norm is not None
        return LayerWeights(
            input_norm=input_norm,
            qkv=weight(qkv, hidden),
            qkv_bias=bias(qkv, config.qkv_bias),
            q_norm=norm("self_attn.q_norm", config.head_dim, config.qk_norm),
            k_norm=norm("self_attn.k_norm", config.head_dim, config.qk_norm),
            o=weight(o, config.q_size),
            o_bias=bias(o, config.o_bias),
            post_norm=post_norm,
            gate_up=weight(gate_up, hidden),
            gate_up_bias=bias(gate_up, config.mlp_bias),
            down=weight(down, inter),
            down_bias=bias(down, config.mlp_bias),
        )

    vocab = config.vocab_size
    embed = fused(("model.embed_tokens.weight", vocab), width=config.hidden_size)
    lm_head = (
        embed
        if config.tie_word_embeddings
        else fused(("lm_head.weight", vocab), width=config.hidden_size)
    )
    return ModelWeights(
        embed=embed,
        layers=[layer(index) for index in range(config.num_layers)],
        norm=fused(("model.norm.weight", config.hidden_size), width=None),
        lm_head=lm_head,
    )
