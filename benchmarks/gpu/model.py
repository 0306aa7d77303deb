"""Base models of random weights, made on the device: nothing is read from disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.models import Shape, model_fields
from dataplane.models.config import ModelConfig
from dataplane.models.config_json import load_config
from dataplane.models.shapes import Group, layer_groups
from dataplane.models.weights import LayerWeights, ModelWeights


class RandomModel:
    """A model directory that holds config.json only, and weights to go with it."""

    def __init__(
        self, folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> None:
        """folder: made here."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(model_fields(shape, dtype)))
        self.folder = folder
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._config = load_config(folder)
        self._weights: ModelWeights | None = None

    @property
    def base_bytes(self) -> float:
        """That a decode step must read of the base model."""
        return self.shape.base_bytes * self._width

    def adapter_bytes(self, rank: int, targets: tuple[str, ...]) -> float:
        return self.shape.adapter_bytes(rank, targets) * self._width

    @property
    def kv_token_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        shape = self.shape
        heads = shape.num_kv_heads * shape.head_dim
        return 2 * shape.num_layers * heads * self.dtype.itemsize

    def weights(self) -> ModelWeights:
        """On a GPU the same tensors each time; on CPU an engine packs what it gets, so others."""
        if self.device.type == "cpu":
            return random_weights(self._config, self.dtype, self.device)
        if self._weights is None:
            self._weights = random_weights(self._config, self.dtype, self.device)
        return self._weights

    @property
    def _width(self) -> float:
        return self.dtype.itemsize / 2  # a Shape counts bytes of bfloat16


@torch.inference_mode()
def random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Weights that keep activations bounded, for a model of the plain Llama kind."""
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias)
    assert not (config.qk_norm or config.sandwich_norms or config.tie_word_embeddings)
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> torch.Tensor:
        matrix = torch.empty(rows, columns, dtype=dtype, device=device)
        return matrix.normal_(std=columns**-0.5, generator=generator)

    def projection(group: Group) -> torch.Tensor:
        return normal(group.out_features, group.in_features)

    def ones() -> torch.Tensor:
        return torch.ones(config.hidden_size, dtype=dtype, device=device)

    groups = layer_groups(config, 0)
    layers = [
        LayerWeights(
            input_norm=ones(),
            qkv=projection(groups["qkv"]),
            qkv_bias=None,
            q_norm=None,
            k_norm=None,
            o=projection(groups["o"]),
            o_bias=None,
            attention_out_norm=None,
            mlp_norm=ones(),
            gate_up=projection(groups["gate_up"]),
            gate_up_bias=None,
            down=projection(groups["down"]),
            down_bias=None,
            mlp_out_norm=None,
        )
        for _ in range(config.num_layers)
    ]
    table = (config.vocab_size, config.hidden_size)
    return ModelWeights(
        embed=normal(*table), layers=layers, norm=ones(), head=normal(*table), tied=False
    )
