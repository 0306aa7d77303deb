"""The decoder of the Llama family, and of what differs little from it, over the paged pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dataplane.models.config import ModelConfig
from dataplane.models.shapes import EXPERTS_DOWN, EXPERTS_GATE_UP, ROUTER
from dataplane.models.weights import LayerWeights, ModelWeights
from dataplane.parallel.group import RankGroup
from kernels.attention.metadata import AttentionMetadata
from kernels.attention.op import paged_attention
from kernels.experts.lora import ExpertLora
from kernels.experts.op import mix_experts
from kernels.fused.op import (
    add_layer_norm,
    add_rms_norm,
    gated_activation,
    layer_norm,
    plain_activation,
    rms_norm,
)
from kernels.gpu.side_stream import SideStream
from kernels.kv.op import rope_write_kv
from kernels.layers.cpu import LayerStack
from kernels.layers.weights import supports as supports_layers
from kernels.linear.op import Weight, linear
from kernels.lora.beside import LoraBeside
from kernels.lora.extras import AffineSegment, lora_affine
from kernels.lora.layered import LayeredSegments
from kernels.lora.op import LoraSegments, lora_apply, lora_expand, lora_shrink
from kernels.vocabulary.op import adapt_embeddings, adapt_logits
from kernels.vocabulary.plan import EmbeddingSegment, HeadSegment

LayerSegments = Mapping[str, LoraSegments]
"""Projection group -> LoRA segments of the batch, in one layer."""
LayerAffine = Mapping[str, Sequence[AffineSegment]]
"""Projection group -> segments whose adapter rescales or shifts it (DoRA, biases)."""

_NO_AFFINE: LayerAffine = {}

_BESIDE_TOKENS = 256  # of a step whose adapters run beside the base model

# As HF's configs name them.
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}


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
    # Adapters' own rows, over tokens and over logit rows.
    embedding: Sequence[EmbeddingSegment] = ()
    head: Sequence[HeadSegment] = ()
    # Called with each layer's number before its adapters are read; None when all are in.
    wait: Callable[[int], None] | None = None


@dataclass(frozen=True)
class HeadSlice:
    """The part of the adapters' lm_head matrices that lies in one layer of the pool."""

    layer: int
    in_start: int
    in_end: int
    out_start: int
    out_end: int
    segments: LoraSegments
    affine: Sequence[AffineSegment] = ()  # over this slice's output columns


class Decoder:
    """Stateless but for its weights: all state of sequences is in the pool."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        max_context: int,
        lora_stream: SideStream | None = None,
        group: RankGroup | None = None,
    ) -> None:
        """weights: packed in place. lora_stream: adapters' products of small steps run on it,
        beside the base model's; a GPU's alone. group: `config` and `weights` are a shard's
        (dataplane/parallel/shard.py), and the ranks of the group have the others."""
        self.config = config
        self._lora_stream = lora_stream
        self._group = group
        self.weights = weights
        weights.pack()
        like = weights.embed
        self._ropes = [rope.tables(max_context, like.dtype, like.device) for rope in config.ropes]
        self._activation = _ACTIVATIONS[config.activation]
        self._embedding_scale: torch.Tensor | float | None = None
        if config.embedding_scale != 1.0:
            self._embedding_scale = config.embedding_scale
            if config.rounds_embedding_scale:  # as it was in training
                self._embedding_scale = like.new_tensor(config.embedding_scale)
        self._stack: LayerStack | None = None
        if group is None and supports_layers(weights.layers, weights.head):
            assert isinstance(weights.head, torch.Tensor)
            self._stack = LayerStack(
                weights.layers,
                weights.norm,
                weights.head,
                [self._ropes[index] for index in config.layer_ropes],
                config.sliding_windows,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                eps=config.rms_norm_eps,
                attention_scale=config.attention_scale,
                attention_soft_cap=config.attention_soft_cap,
                activation=self._activation,
                gated=config.traits.gated_mlp,
                interleaved_rope=config.traits.interleaved_rope,
                parallel_residual=config.traits.parallel_residual,
            )

    @property
    def activation(self) -> str:
        """As `kernels.fused` names it."""
        return self._activation

    @property
    def has_lora_stream(self) -> bool:
        return self._lora_stream is not None

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: torch.Tensor, page_tokens: int) -> torch.Tensor:
        """Runs all tokens and writes their keys and values to the pool.

        pool: [num_layers, num_pages, page_elems]
        Returns logits [num_logits, vocab_size] in the model's dtype; of several ranks the first
        one does, whose token ids count.
        """
        config, weights, group = self.config, self.weights, self._group
        if group is not None:
            group.share(batch.token_ids)
        x = F.embedding(batch.token_ids, weights.embed)
        if batch.embedding:
            if batch.wait is not None:  # their rows are spread over all layers
                batch.wait(config.num_layers - 1)
            adapt_embeddings(x, batch.token_ids, pool, batch.embedding)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        if self._stack is not None and _fits_stack(batch):
            x, logits = self._stack.run(
                x,
                batch.positions,
                batch.page_index,
                batch.page_offset,
                pool,
                page_tokens,
                batch.attention,
                batch.layers if isinstance(batch.layers, LayeredSegments) else None,
                batch.wait,
                batch.logit_rows,
            )
        else:
            (h, delta), rows = self._layers(x, batch, pool, page_tokens), batch.logit_rows
            delta = delta if delta is None else delta[rows]
            x = _add_norm(h[rows], x[rows], weights.norm, config.rms_norm_eps, delta)
            logits = linear(x, weights.head)
            if group is not None:
                logits = group.gather_logits(logits, config.vocab_size)
        if batch.head:
            adapt_logits(logits, x, pool, batch.head)
        if batch.lm_head:
            _add_lm_head(logits, x, batch, pool)
        if weights.head_bias is not None:  # whatever rows an adapter has of its own
            logits += weights.head_bias
        if config.logit_divisor != 1.0:
            logits = logits / config.logit_divisor
        if config.logit_soft_cap is not None:
            logits = torch.tanh(logits / config.logit_soft_cap) * config.logit_soft_cap
        return logits

    def _layers(
        self, x: torch.Tensor, batch: Batch, pool: torch.Tensor, page_tokens: int
    ) -> _Projected:
        """One op after the other. x: [num_tokens, hidden], becomes the residual stream before the
        last layer's output is added. Returns that output."""
        weights, eps, group = self.weights, self.config.rms_norm_eps, self._group
        ropes = [(cos[batch.positions], sin[batch.positions]) for cos, sin in self._ropes]
        first_norm = weights.layers[0].input_norm
        h = x if first_norm is None else _norm(x, first_norm, eps)
        delta: torch.Tensor | None = None
        beside: LoraBeside | None = None
        if self._lora_stream is not None and len(x) <= _BESIDE_TOKENS and any(batch.layers):
            beside = LoraBeside(self._lora_stream)
        project = partial(_project, beside)
        try:
            for index, layer in enumerate(weights.layers):
                if batch.wait is not None:
                    batch.wait(index)
                pages = pool[index]
                lora = batch.layers[index]
                affine = batch.affine[index] if batch.affine else _NO_AFFINE
                qkv = project(h, layer.qkv, layer.qkv_bias, pages, "qkv", lora, affine)
                attended = self._attention(qkv, batch, pages, layer, index, ropes, page_tokens)
                y, delta = project(attended, layer.o, layer.o_bias, pages, "o", lora, affine)
                aside: torch.Tensor | None = None
                if self.config.traits.parallel_residual:  # the MLP reads h, too
                    aside = _sum(y, delta)
                    if group is None:
                        x += aside
                else:
                    if group is not None:  # what adapters add is summed with the rest
                        y, delta = group.add_up(y, delta), None
                    if layer.attention_out_norm is not None:
                        y, delta = _norm(_sum(y, delta), layer.attention_out_norm, eps), None
                    h = _add_norm(y, x, layer.mlp_norm, eps, delta)
                mlp = partial(
                    self._mlp, project, layer=layer, pages=pages, lora=lora, affine=affine
                )
                if layer.experts is None:
                    h, delta = mlp(h)
                else:  # which has the MLP as a shared expert, where it has any
                    shared = () if layer.down is None else mlp(h)
                    added = _expert_lora(pages, lora)
                    h = mix_experts(h, layer.experts, self._activation, *shared, lora=added)
                    delta = None
                if group is not None:
                    h = h if aside is None else h + aside
                    h, delta = group.add_up(h, delta), None
                if layer.mlp_out_norm is not None:
                    h, delta = _norm(_sum(h, delta), layer.mlp_out_norm, eps), None
                if index + 1 < len(weights.layers):
                    h = _add_norm(h, x, weights.layers[index + 1].input_norm, eps, delta)
        finally:  # without memory, too: a capture ends with no branch left, and says why
            if beside is not None:
                beside.finish()
        return _Projected(h, delta)

    def _mlp(
        self,
        project: Callable[..., _Projected],
        h: torch.Tensor,
        *,
        layer: LayerWeights,
        pages: torch.Tensor,
        lora: LayerSegments,
        affine: LayerAffine,
    ) -> _Projected:
        h, delta = project(h, layer.gate_up, layer.gate_up_bias, pages, "gate_up", lora, affine)
        activate = gated_activation if self.config.traits.gated_mlp else plain_activation
        h = activate(h, self._activation, delta)
        return project(h, layer.down, layer.down_bias, pages, "down", lora, affine)

    def _attention(
        self,
        projected: _Projected,
        batch: Batch,
        pages: torch.Tensor,
        layer: LayerWeights,
        index: int,
        ropes: Sequence[tuple[torch.Tensor, torch.Tensor]],
        page_tokens: int,
    ) -> torch.Tensor:
        """projected: [num_tokens, q_size + 2 * kv_size]. Returns [num_tokens, q_size]."""
        config = self.config
        qkv, delta = projected
        kv_pages = pages.view(-1, 2, page_tokens, config.num_kv_heads, config.head_dim)
        cos, sin = ropes[config.layer_ropes[index]]
        q = rope_write_kv(
            qkv,
            cos,
            sin,
            kv_pages,
            batch.page_index,
            batch.page_offset,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=config.rms_norm_eps,
            delta=delta,
            interleaved=config.traits.interleaved_rope,
        )
        attended = paged_attention(
            q,
            kv_pages,
            batch.attention,
            scale=config.attention_scale,
            sliding_window=config.sliding_windows[index],
            soft_cap=config.attention_soft_cap,
        )
        return attended.reshape(qkv.shape[0], config.q_size)


class _Projected(NamedTuple):
    """What a projection gave, and what its adapters add to that; None where it is in already."""

    y: torch.Tensor
    delta: torch.Tensor | None


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return (rms_norm if weight.dim() == 1 else layer_norm)(x, weight, eps)


def _add_norm(
    h: torch.Tensor,
    x: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    delta: torch.Tensor | None,
) -> torch.Tensor:
    """Adds h to the residual stream x, in place. Returns what the next projections read, which is
    x itself where there is no norm."""
    if norm is not None:
        return (add_rms_norm if norm.dim() == 1 else add_layer_norm)(h, x, norm, eps, delta)
    assert delta is None  # the output's norm has taken it
    x += h
    return x


def _expert_lora(layer_pages: torch.Tensor, lora: LayerSegments) -> ExpertLora | None:
    groups = [lora.get(name) for name in (ROUTER, EXPERTS_GATE_UP, EXPERTS_DOWN)]
    if all(each is None for each in groups):
        return None
    return ExpertLora(layer_pages, *groups)


def _sum(y: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    return y if delta is None else y + delta


def _fits_stack(batch: Batch) -> bool:
    return (
        batch.token_ids.numel() > 0
        and not batch.affine
        and (isinstance(batch.layers, LayeredSegments) or not any(batch.layers))
    )


def _add_lm_head(logits: torch.Tensor, x: torch.Tensor, batch: Batch, pool: torch.Tensor) -> None:
    """Adds the adapters' lm_head, in place. x: [num_logits, hidden]"""
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


def _project(
    beside: LoraBeside | None,
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    layer_pages: torch.Tensor,
    group: str,
    lora: LayerSegments,
    affine: LayerAffine,
) -> _Projected:
    def base() -> torch.Tensor:
        y = linear(x, weight, bias)
        if group in affine:
            lora_affine(y, layer_pages, affine[group])
        return y

    if beside is not None and group in lora:
        return _Projected(*beside.project(base, weight.shape[0], x, layer_pages, lora[group]))
    y = base()
    if group in lora:
        lora_apply(y, x, layer_pages, lora[group])
    return _Projected(y, None)
