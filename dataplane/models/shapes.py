"""The projections that adapters may change, and how the decoder groups them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dataplane.models.config import ModelConfig
from storage.adapter.experts import DOWN as WHOLE_DOWN
from storage.adapter.experts import GATE_UP as WHOLE_GATE_UP
from storage.adapter.experts import ROUTER as WHOLE_ROUTER
from storage.base_model import MixtureModule


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
ROUTER, EXPERTS_GATE_UP, EXPERTS_DOWN = "router", "experts_gate_up", "experts_down"
GROUPS = ("qkv", "o", "gate_up", "down")
"""Names of the projection groups of a layer, in the order of the forward pass; of an MLP without a
gate, gate_up is what stands before its activation. A layer with a
mixture of experts has the last two only where there is a shared expert, whose they are."""

MIXTURE_GROUPS = (ROUTER, EXPERTS_GATE_UP, EXPERTS_DOWN)
"""Of a layer with a mixture: adapters' groups alone, as the base model computes these otherwise."""


# As transformers 4 names them: gate, up and down of an expert, and the router.
_MIXTRAL = (
    *(f"block_sparse_moe.experts.*.{each}" for each in ("w1", "w3", "w2")),
    "block_sparse_moe.gate",
)
_QWEN = (*(f"mlp.experts.*.{each}_proj" for each in ("gate", "up", "down")), "mlp.gate")


def group_names(config: ModelConfig) -> tuple[str, ...]:
    """Groups that adapters may have in layers of this model."""
    return GROUPS if config.experts is None else (*GROUPS, *MIXTURE_GROUPS)


def layer_groups(config: ModelConfig, layer: int) -> Mapping[str, Group]:
    """Groups of a decoder layer, in the order of the forward pass."""
    hidden, q, kv, inter = (
        config.hidden_size,
        config.q_size,
        config.kv_size,
        config.intermediate_size,
    )
    mlp = "mlp"
    if config.experts is not None and config.is_sparse(layer):
        mlp, inter = "mlp.shared_expert", config.experts.shared_intermediate_size
    qkv = (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv))
    gate_up = ((f"{mlp}.gate_proj", inter), (f"{mlp}.up_proj", inter))
    traits = config.traits
    down = f"{mlp}.down_proj" if mlp != "mlp" else traits.down_module
    if config.fused_projections:
        qkv = (("self_attn.qkv_proj", q + 2 * kv),)
    if config.fused_projections or traits.fused_gate_up:
        gate_up = (("mlp.gate_up_proj", 2 * inter),)
    elif not traits.gated_mlp:
        gate_up = ((traits.up_module, inter),)
    groups = {
        "qkv": _group(hidden, config.qkv_bias, *qkv),
        "o": _group(q, config.o_bias, (traits.o_module, hidden)),
    }
    if inter:
        groups["gate_up"] = _group(hidden, config.mlp_bias, *gate_up)
        groups["down"] = _group(inter, config.mlp_bias, (down, hidden))
    return groups


def layer_modules(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module -> (in_features, out_features), of all layers that have it."""
    return {
        projection.module: (group.in_features, projection.out_features)
        for layer in range(config.num_layers)
        for group in layer_groups(config, layer).values()
        for projection in group.projections
    }


def module_layers(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Module -> the layers that have it, of those modules that not all layers have."""
    if config.experts is None:
        return {}
    layers: dict[str, list[int]] = {}
    for layer in range(config.num_layers):
        for group in layer_groups(config, layer).values():
            for projection in group.projections:
                layers.setdefault(projection.module, []).append(layer)
    return {module: tuple(some) for module, some in layers.items() if len(some) < config.num_layers}


def mixture_groups(config: ModelConfig, layer: int) -> Mapping[str, Group]:
    """Those of MIXTURE_GROUPS, of one expert; empty where the layer has no mixture. Projections are
    of experts by themselves, a star in place of their number, as transformers 4 has them."""
    experts = config.experts
    if experts is None or not config.is_sparse(layer):
        return {}
    hidden, inter = config.hidden_size, experts.intermediate_size
    gate, up, down, router = _MIXTRAL if experts.has_mixtral_names else _QWEN
    return {
        ROUTER: _group(hidden, False, (router, experts.num_experts)),
        EXPERTS_GATE_UP: _group(hidden, False, (gate, inter), (up, inter)),
        EXPERTS_DOWN: _group(inter, False, (down, hidden)),
    }


def mixture_modules(config: ModelConfig) -> dict[str, MixtureModule]:
    """By all names that adapters have for them."""
    layers = tuple(layer for layer in range(config.num_layers) if mixture_groups(config, layer))
    if not layers or config.experts is None:
        return {}
    groups, count = mixture_groups(config, layers[0]), config.experts.num_experts
    modules: dict[str, MixtureModule] = {}
    for name, group in groups.items():
        for projection in group.projections:
            num_experts = 0 if name == ROUTER else count
            modules[projection.module] = MixtureModule(
                group.in_features, projection.out_features, num_experts, layers
            )
    for name, whole, num_experts in (
        (ROUTER, WHOLE_ROUTER, 0),
        (EXPERTS_GATE_UP, WHOLE_GATE_UP, count),
        (EXPERTS_DOWN, WHOLE_DOWN, count),
    ):
        group = groups[name]
        modules[whole] = MixtureModule(group.in_features, group.out_features, num_experts, layers)
    return modules


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
