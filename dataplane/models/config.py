"""The decoder's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.models.experts import Experts
from dataplane.models.quantization.description import Quantization
from dataplane.models.rope import Rope
from dataplane.models.traits import LLAMA_NORMS, PLAIN, NormNames, Traits


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. All counts are of elements, heads or layers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float  # or of LayerNorms
    max_position_embeddings: int  # the longest context that is served exactly
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm of each query and key head (Qwen3, Gemma 3), or of all (OLMo)
    activation: str  # "silu", "gelu_pytorch_tanh" or "relu2"
    fused_projections: bool  # qkv_proj and gate_up_proj are modules of their own (Phi-3)
    unit_offset_norms: bool  # norms multiply by 1 + weight, in float32 (Gemma)
    sandwich_norms: bool  # attention's and the MLP's outputs are normed too (Gemma)
    embedding_scale: float  # 1.0 but for Gemma
    attention_scale: float  # of q · k
    attention_soft_cap: float | None  # cap · tanh(score / cap)
    logit_soft_cap: float | None
    sliding_windows: tuple[int | None, ...]  # per layer
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]  # per layer, an index into `ropes`
    eos_token_ids: tuple[int, ...]
    dtype: str  # the checkpoint's own: "bfloat16", "float16" or "float32"
    # Of the checkpoint; None: it has plain weights.
    quantization: Quantization | None = field(default=None, repr=False)
    logit_divisor: float = field(default=1.0, repr=False)  # 1.0 but for Granite
    rounds_embedding_scale: bool = field(default=True, repr=False)  # to the model's dtype
    # Of attention and the MLP; without, they have sandwich_norms, which are of outputs (OLMo 2, 3).
    input_norms: bool = field(default=True, repr=False)
    whole_qk_norms: bool = field(default=False, repr=False)  # qk_norm is of all heads together
    # Of a multimodal checkpoint.
    is_text_part: bool = field(default=False, repr=False)
    is_tie_in_doubt: bool = field(default=False, repr=False)  # a head of its own unties it
    experts: Experts | None = field(default=None, repr=False)  # None: all layers are dense
    traits: Traits = field(default=PLAIN, repr=False)
    norm_names: NormNames = field(default=LLAMA_NORMS, repr=False)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has a mixture of experts."""
        return self.experts is not None and self.experts.sparse_layers[layer]

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim
