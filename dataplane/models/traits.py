"""How the layers of a family are built where they are not built as Llama's are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """Of what is computed, and the names of modules."""

    layer_norms: bool = False  # LayerNorm in place of RMSNorm
    norm_biases: bool = False  # LayerNorms have a shift
    head_layer_norms: bool = False  # qk_norm is LayerNorm, each head with weights of its own
    parallel_residual: bool = False  # the MLP reads what attention does, and both are added
    interleaved_rope: bool = False  # neighbours are rotated together, not the halves of a head
    gated_mlp: bool = True
    fused_gate_up: bool = False  # gate_up_proj is a module of its own; q, k and v are three
    head_bias: bool = False
    o_module: str = "self_attn.o_proj"
    up_module: str = "mlp.up_proj"
    down_module: str = "mlp.down_proj"


@dataclass(frozen=True)
class NormNames:
    """As checkpoints have them; all but the last below the layer."""

    attention_out: str = "post_attention_layernorm"
    mlp: str = "post_attention_layernorm"
    mlp_out: str = "post_feedforward_layernorm"
    last: str = "model.norm"


PLAIN = Traits()
LLAMA_NORMS = NormNames()
SANDWICH = NormNames(mlp="pre_feedforward_layernorm")
