"""The decoder of the Llama family, and of what differs little from it, over the paged pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataplane.models.config import ModelConfig
from dataplane.models.weights import LayerWeights, ModelWeights
from kernels.attention.metadata import AttentionMetadata
from kernels.attention.op import paged_attention
from kernels.kv.op import apply_rope, write_kv
from kernels.linear.op import linear
from kernels.lora.extras import AffineSegment, lora_affine
from kernels.lora.op import lora_apply, lora_expand, lora_shrink
from kernels.lora.plan import Segment

LayerSegments = Mapping[str, Sequence[Segment]]
"""Projection group -> LoRA segments of the batch, in one layer."""
LayerAffine = Mapping[str, Sequence[AffineSegment]]
"""Projection group -> segments whose adapter rescales or shifts it (DoRA, biases)."""

_NO_AFFINE: LayerAffine = {}


@dataclass(frozen=True)
class Batch:
    """One step's tokens. Tokens of one sequence are adjacent, sequences of one adapter too."""

    token_ids: torch.Tensor  # [num_tokens] int64, device
    positions: torch.Tensor  # [num_tokens] int64, device
    page_index: torch.Tensor  # [num_tokens] int64: where each token's key and value go
    page_offset: torch.Tensor  # [num_tokens] int64
    attention: AttentionMetadata
    layers: Sequence[LayerSegments]  # [num_layers]
    affine: Sequence[LayerAffine]  # [num_layers], or empty when no adapter of the batch needs it
    logit_rows: torch.Tensor  # [num_logits] int64: rows whose next token is asked for
    # LoRA of the head, over logit rows: per layer of the pool, (input columns, output columns,
    # segments); an adapter's head is spread over the layers' slices of its pages by columns.
    lm_head: Sequence[HeadSlice]


@dataclass(frozen=True)
class HeadSlice:
    """The part of the adapters' lm_head matrices that lies in one layer of the pool."""

    layer: int
    in_start: int
    in_end: int
    out_start: int
    out_end: int
    segments: Sequence[Segment]
    affine: Sequence[AffineSegment] = ()  # over this slice's output columns


class Decoder:
    """Stateless but for its weights: all state of sequences is in the pool."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, max_context: int) -> None:
        """weights: packed in place."""
        self.config = config
        self.weights = weights
        weights.pack()
        like = weights.embed
        self._ropes = [rope.tables(max_context, like.dtype, like.device) for rope in config.ropes]
        self._rotate = _rotation(config.ropes[0].rotary_dim, config.head_dim)
        self._norm = _float_norm if config.unit_offset_norms else _plain_norm
        self._activation = _ACTIVATIONS[config.activation]
        self._embedding_scale: torch.Tensor | None = None
        if config.embedding_scale != 1.0:  # rounded to the model's dtype, as it was in training
            self._embedding_scale = like.new_tensor(config.embedding_scale)

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
        """Runs all tokens and writes their keys and values to the pool.

        pool: [num_layers, num_pages, page_elems]
        Returns logits [num_logits, vocab_size] in the model's dtype.
        """
        config, weights, norm, eps = self.config, self.weights, self._norm, self.config.rms_norm_eps
        ropes = [(cos[batch.positions], sin[batch.positions]) for cos, sin in self._ropes]
        x = F.embedding(batch.token_ids, weights.embed)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        for index, layer in enumerate(weights.layers):
            pages = pool[index]
            lora = batch.layers[index]
            affine = batch.affine[index] if batch.affine else _NO_AFFINE
            h = norm(x, layer.input_norm, eps)
            h = self._attention(h, batch, pages, layer, index, ropes, page_tokens)
            h = _project(h, layer.o, layer.o_bias, pages, "o", lora, affine)
            if layer.attention_out_norm is not None:
                h = norm(h, layer.attention_out_norm, eps)
            x = x + h
            h = norm(x, layer.mlp_norm, eps)
            h = _project(h, layer.gate_up, layer.gate_up_bias, pages, "gate_up", lora, affine)
            gate, up = h.split(config.intermediate_size, dim=-1)
            h = self._activation(gate) * up
            h = _project(h, layer.down, layer.down_bias, pages, "down", lora, affine)
            if layer.mlp_out_norm is not None:
                h = norm(h, layer.mlp_out_norm, eps)
            x = x + h
        x = norm(x[batch.logit_rows], weights.norm, eps)
        logits = self._logits(x, batch, pool)
        if config.logit_soft_cap is not None:
            logits = torch.tanh(logits / config.logit_soft_cap) * config.logit_soft_cap
        return logits

    def _attention(
        self,
        h: torch.Tensor,
        batch: Batch,
        pages: torch.Tensor,
        layer: LayerWeights,
        index: int,
        ropes: Sequence[tuple[torch.Tensor, torch.Tensor]],
        page_tokens: int,
    ) -> torch.Tensor:
        config = self.config
        num_tokens, head_dim = h.shape[0], config.head_dim
        affine = batch.affine[index] if batch.affine else _NO_AFFINE
        qkv = _project(h, layer.qkv, layer.qkv_bias, pages, "qkv", batch.layers[index], affine)
        q, k, v = qkv.split((config.q_size, config.kv_size, config.kv_size), dim=-1)
        q = q.view(num_tokens, config.num_heads, head_dim)
        k = k.view(num_tokens, config.num_kv_heads, head_dim)
        v = v.view(num_tokens, config.num_kv_heads, head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self._norm(q, layer.q_norm, config.rms_norm_eps)
            k = self._norm(k, layer.k_norm, config.rms_norm_eps)
        cos, sin = ropes[config.layer_ropes[index]]
        q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        kv_pages = pages.view(-1, 2, page_tokens, config.num_kv_heads, head_dim)
        write_kv(kv_pages, k, v, batch.page_index, batch.page_offset)
        attended = paged_attention(
            q,
            kv_pages,
            batch.attention,
            scale=config.attention_scale,
            sliding_window=config.sliding_windows[index],
            soft_cap=config.attention_soft_cap,
        )
        return attended.reshape(num_tokens, config.q_size)

    def _logits(self, x: torch.Tensor, batch: Batch, pool: torch.Tensor) -> torch.Tensor:
        logits = linear(x, self.weights.head)
        if not batch.lm_head:
            return logits
        # The intermediate is a sum over the input's column slices, so all shrinks come first.
        hidden = None
        for part in batch.lm_head:
            if part.in_start < part.in_end:
                columns = x[:, part.in_start : part.in_end]
                hidden = lora_shrink(columns, pool[part.layer], part.segments, hidden)
        assert hidden is not None
        for part in batch.lm_head:
            if part.out_start < part.out_end:
                columns = logits[:, part.out_start : part.out_end]
                if part.affine:
                    lora_affine(columns, pool[part.layer], part.affine)
                lora_expand(columns, hidden, pool[part.layer], part.segments)
        return logits


def _project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_pages: torch.Tensor,
    group: str,
    lora: LayerSegments,
    affine: LayerAffine,
) -> torch.Tensor:
    y = linear(x, weight, bias)
    if group in affine:
        lora_affine(y, layer_pages, affine[group])
    if group in lora:
        lora_apply(y, x, layer_pages, lora[group])
    return y


def _plain_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _float_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight: float32, whatever x is."""
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": _gelu_tanh,
}


def _rotation(
    rotary_dim: int, head_dim: int
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Rotates the first `rotary_dim` elements of each head."""
    if rotary_dim == head_dim:
        return apply_rope

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rotated = apply_rope(x[..., :rotary_dim], cos, sin)
        return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)

    return rotate
