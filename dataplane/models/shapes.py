"""The projections that adapters may change, and how the decoder groups them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dataplane.models.config import ModelConfig


class Projection(NamedTuple):
    """One linear module as a slice of its group's fused output."""

    module: str  # as PEFT names it, below the layer: "self_attn.q_proj"
    out_start: int
    out_features: int


class Group(NamedTuple):
    """Projections that read the same input and are computed by one fused GEMM."""

    in_features: int
    has_bias: bool  # in the base model, all of its projections or none
    projections: tuple[Projection, ...]

    @property
    def out_features(self) -> int:
        return sum(projection.out_features for projection in self.projections)


LM_HEAD = "lm_head"
GROUPS = ("qkv", "o", "gate_up", "down")
"""Names of the projection groups of a layer, in the order of the forward pass."""


def layer_groups(config: ModelConfig) -> Mapping[str, Group]:
    """Groups of every decoder layer, in the order of the forward pass."""
    hidden, q, kv, inter = (
        config.hidden_size,
        config.q_size,
        config.kv_size,
        config.intermediate_size,
    )
    qkv = (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv))
    gate_up = (("mlp.gate_proj", inter), ("mlp.up_proj", inter))
    if config.fused_projections:
        qkv = (("self_attn.qkv_proj", q + 2 * kv),)
        gate_up = (("mlp.gate_up_proj", 2 * inter),)
    return {
        "qkv": _group(hidden, config.qkv_bias, *qkv),
        "o": _group(q, config.o_bias, ("self_attn.o_proj", hidden)),
        "gate_up": _group(hidden, config.mlp_bias, *gate_up),
        "down": _group(inter, config.mlp_bias, ("mlp.down_proj", hidden)),
    }


def layer_modules(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module -> (in_features, out_features) in each layer."""
    return {
        projection.module: (group.in_features, projection.out_features)
        for group in layer_groups(config).values()
        for projection in group.projections
    }


def outer_modules(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module -> (in_features, out_features) outside the layers."""
    return {LM_HEAD: (config.hidden_size, config.vocab_size)}


def _group(in_features: int, has_bias: bool, *modules: tuple[str, int]) -> Group:
    projections: list[Projection] = []
    start = 0
    for module, out_features in modules:
        projections.append(Projection(module, start, out_features))
        start += out_features
    return Group(in_features, has_bias, tuple(projections))
