"""The decoder of the Llama family over the paged pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataplane.models.config import ModelConfig
from dataplane.models.weights import LayerWeights, ModelWeights
from kernels.attention.metadata import AttentionMetadata
from kernels.attention.op import paged_attention
from kernels.kv.op import apply_rope, write_kv
from kernels.lora.op import lora_apply, lora_expand, lora_shrink
from kernels.lora.plan import Segment

LayerSegments = Mapping[str, Sequence[Segment]]
"""Projection group -> LoRA segments of the batch, in one layer."""


@dataclass(frozen=True)
class Batch:
    """One step's tokens. Tokens of one sequence are adjacent, sequences of one adapter too."""

    token_ids: torch.Tensor  # [num_tokens] int64, device
    positions: torch.Tensor  # [num_tokens] int64, device
    page_index: torch.Tensor  # [num_tokens] int64: where each token's key and value go
    page_offset: torch.Tensor  # [num_tokens] int64
    attention: AttentionMetadata
    layers: Sequence[LayerSegments]  # [num_layers]
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


class Decoder:
    """Stateless but for its weights: all state of sequences is in the pool."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, max_context: int) -> None:
        self.config = config
        self.weights = weights
        self._scale = config.head_dim**-0.5
        self._cos, self._sin = _rope_tables(config, max_context, weights.embed)

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
        """Runs all tokens and writes their keys and values to the pool.

        pool: [num_layers, num_pages, page_elems]
        Returns logits [num_logits, vocab_size] in the model's dtype.
        """
        config, weights = self.config, self.weights
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        x = F.embedding(batch.token_ids, weights.embed)
        for index, layer in enumerate(weights.layers):
            pages = pool[index]
            lora = batch.layers[index]
            attended = self._attention(
                self._norm(x, layer.input_norm), batch, pages, layer, index, cos, sin, page_tokens
            )
            x = x + _project(attended, layer.o, layer.o_bias, pages, lora.get("o", ()))
            h = self._norm(x, layer.post_norm)
            gate_up = _project(h, layer.gate_up, layer.gate_up_bias, pages, lora.get("gate_up", ()))
            gate, up = gate_up.split(config.intermediate_size, dim=-1)
            h = F.silu(gate) * up
            x = x + _project(h, layer.down, layer.down_bias, pages, lora.get("down", ()))
        x = self._norm(x[batch.logit_rows], weights.norm)
        return self._logits(x, batch, pool)

    def _attention(
        self,
        h: torch.Tensor,
        batch: Batch,
        pages: torch.Tensor,
        layer: LayerWeights,
        index: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        page_tokens: int,
    ) -> torch.Tensor:
        config = self.config
        num_tokens, head_dim = h.shape[0], config.head_dim
        lora = batch.layers[index].get("qkv", ())
        qkv = _project(h, layer.qkv, layer.qkv_bias, pages, lora)
        q, k, v = qkv.split((config.q_size, config.kv_size, config.kv_size), dim=-1)
        q = q.view(num_tokens, config.num_heads, head_dim)
        k = k.view(num_tokens, config.num_kv_heads, head_dim)
        v = v.view(num_tokens, config.num_kv_heads, head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        kv_pages = pages.view(-1, 2, page_tokens, config.num_kv_heads, head_dim)
        write_kv(kv_pages, k, v, batch.page_index, batch.page_offset)
        attended = paged_attention(
            q,
            kv_pages,
            batch.attention,
            scale=self._scale,
            sliding_window=config.sliding_windows[index],
        )
        return attended.reshape(num_tokens, config.q_size)

    def _logits(self, x: torch.Tensor, batch: Batch, pool: torch.Tensor) -> torch.Tensor:
        logits = F.linear(x, self.weights.lm_head)
        if not batch.lm_head:
            return logits
        # The intermediate is a sum over the input's column slices, so all shrinks come first.
        first = batch.lm_head[0].segments
        hidden = [
            torch.zeros(s.end - s.start, s.plan.total_rank, dtype=x.dtype, device=x.device)
            for s in first
        ]
        for part in batch.lm_head:
            if part.in_start < part.in_end:
                columns = x[:, part.in_start : part.in_end]
                shrunk = lora_shrink(columns, pool[part.layer], part.segments)
                for total, addend in zip(hidden, shrunk, strict=True):
                    total += addend
        for part in batch.lm_head:
            if part.out_start < part.out_end:
                columns = logits[:, part.out_start : part.out_end]
                lora_expand(columns, hidden, pool[part.layer], part.segments)
        return logits

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)


def _project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_pages: torch.Tensor,
    segments: Sequence[Segment],
) -> torch.Tensor:
    y = F.linear(x, weight, bias)
    lora_apply(y, x, layer_pages, segments)
    return y


def _rope_tables(
    config: ModelConfig, max_context: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [max_context, head_dim] each, angles computed in float32."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inv_freq = 1.0 / (config.rope_theta**exponent)
    angles = torch.outer(torch.arange(max_context, dtype=torch.float32), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like), angles.sin().to(like)
