"""Base weights: read from safetensors straight into the fused layout, one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from dataplane.errors import CheckpointError
from dataplane.models.checkpoint import Checkpoint
from dataplane.models.config import ModelConfig
from dataplane.models.experts import ExpertReader
from dataplane.models.matrices import Matrices
from dataplane.models.multimodal import text_name, whole_names
from dataplane.models.shapes import GROUPS, LM_HEAD, Group, layer_groups, layer_modules
from dataplane.models.traits import PLAIN
from dataplane.parallel.shard import Shard
from kernels.experts.weights import ExpertWeights
from kernels.linear.op import Weight, pack, unpack
from kernels.quantized.matrix import QuantizedMatrix


@dataclass
class LayerWeights:
    """One decoder layer, dtype and device of the model; norms float32 if `unit_offset_norms`."""

    # Norms are [hidden] or, of LayerNorms, [2, hidden].
    input_norm: torch.Tensor | None  # None without `input_norms`
    qkv: Weight  # [q + 2 kv, hidden]
    qkv_bias: torch.Tensor | None  # [q + 2 kv]
    # [head_dim]; [q] and [kv] with `whole_qk_norms`; [heads, head_dim] with `head_layer_norms`
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Weight  # [hidden, q]
    o_bias: torch.Tensor | None  # [hidden]
    attention_out_norm: torch.Tensor | None  # None without `sandwich_norms`
    mlp_norm: torch.Tensor | None  # None without `input_norms`, or with `parallel_residual`
    # Of the dense MLP, or of the shared expert; None with experts but no shared one.
    gate_up: Weight | None  # [2 intermediate, hidden], or without a gate [intermediate, hidden]
    gate_up_bias: torch.Tensor | None  # as many
    down: Weight | None  # [hidden, intermediate]
    down_bias: torch.Tensor | None  # [hidden]
    mlp_out_norm: torch.Tensor | None  # None without `sandwich_norms`
    experts: ExpertWeights | None = None

    def group(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Plain weight and bias of a projection group of dataplane.models.shapes."""
        assert name in GROUPS
        return unpack(getattr(self, name)), getattr(self, f"{name}_bias")

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Of the plain weight of a projection group."""
        assert name in GROUPS
        weight = getattr(self, name)
        if isinstance(weight, QuantizedMatrix):
            return weight.dequantize(rows)
        return unpack(weight)[rows]

    def bias(self, name: str) -> torch.Tensor | None:
        assert name in GROUPS
        return getattr(self, f"{name}_bias")

    def pack(self) -> None:
        """Brings each projection into the layout that the base GEMM is fastest with."""
        for name in GROUPS:
            if getattr(self, name) is not None:
                setattr(self, name, pack(getattr(self, name)))
        if self.experts is not None:
            self.experts.pack()


@dataclass
class ModelWeights:
    embed: torch.Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    norm: torch.Tensor  # as those of layers
    head: Weight  # [vocab, hidden] of lm_head, packed or not; a shard's are its own rows
    tied: bool  # lm_head is the embedding
    is_tie_in_doubt: bool = False  # it is not, but PEFT takes it for tied
    read_head: Callable[[], torch.Tensor] | None = None  # from the checkpoint; of a shard, untied
    head_bias: torch.Tensor | None = None  # [vocab]; of shards the first one's, and whole

    @property
    def lm_head(self) -> torch.Tensor:
        """[vocab, hidden], plain; the same tensor as `embed` when tied."""
        if self.tied:
            return self.embed
        return unpack(self.head) if self.read_head is None else self.read_head()

    def pack(self) -> None:
        """Brings every matrix of the forward pass into the layout that the base GEMM is fastest
        with. A tied head becomes a copy, as lookups need the plain embedding."""
        for layer in self.layers:
            layer.pack()
        self.head = pack(self.head)


def load_weights(
    model_dir: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard | None = None,
) -> ModelWeights:
    """Takes little more memory than the weights themselves. Quantised ones stay so on a GPU, and
    are dequantised on a CPU. shard: the part to load; None: all.

    Raises: CheckpointError when a tensor is missing or has another shape, or a file is damaged.
    """
    with ExitStack() as stack:
        loader = _Loader(_open(model_dir, config, stack), config, dtype, device, shard)
        weights = loader.load()
    if shard is not None and not weights.tied:
        weights.read_head = lambda: _read_head(model_dir, config, dtype)
    return weights


def _open(model_dir: Path, config: ModelConfig, stack: ExitStack) -> Checkpoint:
    return Checkpoint(model_dir, stack, text_name if config.is_text_part else None)


def _read_head(model_dir: Path, config: ModelConfig, dtype: torch.dtype) -> torch.Tensor:
    with ExitStack() as stack:
        head = torch.empty((config.vocab_size, config.hidden_size), dtype=dtype)
        _open(model_dir, config, stack).copy_into(head, "lm_head.weight")
        return head


def fingerprint(config: ModelConfig) -> str:
    """Hex SHA-256 over the shape of the model: equal for data planes that adapters can share."""
    text = repr(config)
    if config.logit_divisor != 1.0:
        text += f" logit_divisor={config.logit_divisor!r}"
    if not config.input_norms or config.whole_qk_norms:
        text += f" input_norms={config.input_norms} whole_qk_norms={config.whole_qk_norms}"
    if config.traits != PLAIN:
        text += repr(config.traits)
    if config.quantization is not None:
        text += repr(config.quantization)
    if config.experts is not None:
        text += repr(config.experts)
    return hashlib.sha256(text.encode()).hexdigest()


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device
        self._shard = shard
        modules = [
            f"{_layer(n)}{each}" for n in range(config.num_layers) for each in layer_modules(config)
        ]
        self._experts: ExpertReader | None = None
        if config.experts is not None:
            hidden = config.hidden_size
            self._experts = ExpertReader(checkpoint, config.experts, hidden, dtype, device)
        self._matrices = Matrices(
            checkpoint,
            config.quantization,
            [*modules, LM_HEAD],
            dtype,
            device,
            whole_names if config.is_text_part else None,
        )

    def load(self) -> ModelWeights:
        config = self._config
        table = (config.vocab_size, config.hidden_size)
        embed = self._tensor("model.embed_tokens.weight", *table)
        tied = config.tie_word_embeddings and self._is_tied(embed)
        if config.tie_word_embeddings and not tied and not config.is_tie_in_doubt:
            raise CheckpointError(
                "HEAD_NOT_TIED",
                "config.json: tie_word_embeddings is true, but lm_head.weight differs from"
                " model.embed_tokens.weight, and versions of transformers disagree on which one is"
                " the head: set tie_word_embeddings to false, or remove lm_head.weight",
                {"field": "tie_word_embeddings", "tensor": "lm_head.weight"},
            )
        return ModelWeights(
            embed=embed,
            layers=[self._layer(index) for index in range(config.num_layers)],
            norm=self._norm(config.norm_names.last, config.hidden_size),
            head=self._head(embed, tied=tied),
            head_bias=self._head_bias(),
            tied=tied,
            is_tie_in_doubt=config.is_tie_in_doubt and not tied,
        )

    def _is_tied(self, embed: torch.Tensor) -> bool:
        """Whether the checkpoint has no other head."""
        checkpoint = self._checkpoint
        if self._config.quantization is not None and checkpoint.parts(LM_HEAD):
            return checkpoint.is_plain(LM_HEAD) and checkpoint.holds("lm_head.weight", embed)
        return checkpoint.holds("lm_head.weight", embed)

    def _head(self, embed: torch.Tensor, *, tied: bool) -> Weight:
        config, shard = self._config, self._shard
        if shard is None:
            if tied:
                return embed
            return self._matrices.read([(LM_HEAD, config.vocab_size)], config.hidden_size)
        head = self._empty(shard.head_rows, config.hidden_size).zero_()
        rows = shard.vocabulary
        part = head[: rows.stop - rows.start]
        if tied:
            part.copy_(embed[rows])
        elif len(part):
            columns = slice(0, config.hidden_size)
            self._checkpoint.copy_part_into(part, "lm_head.weight", embed.shape, rows, columns)
        return head

    def _head_bias(self) -> torch.Tensor | None:
        """On the first rank, which has all logits."""
        config, shard = self._config, self._shard
        if not config.traits.head_bias or (shard is not None and not shard.is_first):
            return None
        return self._tensor(f"{LM_HEAD}.bias", config.vocab_size)

    def _layer(self, index: int) -> LayerWeights:
        config, prefix = self._config, _layer(index)
        hidden, has_inputs = config.hidden_size, config.input_norms
        sandwich, names = config.sandwich_norms, config.norm_names
        has_mlp_norm = has_inputs and not config.traits.parallel_residual

        def norm(name: str) -> torch.Tensor:
            return self._norm(f"{prefix}{name}", hidden)

        groups = layer_groups(config if self._shard is None else self._shard.local, index)
        whole = layer_groups(config, index)
        qkv, qkv_bias = self._group(prefix, groups["qkv"], whole["qkv"])
        o, o_bias = self._group(prefix, groups["o"], whole["o"])
        gate_up = gate_up_bias = down = down_bias = None
        if "gate_up" in groups:
            gate_up, gate_up_bias = self._group(prefix, groups["gate_up"], whole["gate_up"])
            down, down_bias = self._group(prefix, groups["down"], whole["down"])
        experts = None
        if self._experts is not None and config.is_sparse(index):
            experts = self._experts.read(prefix)
        return LayerWeights(
            input_norm=norm("input_layernorm") if has_inputs else None,
            qkv=qkv,
            qkv_bias=qkv_bias,
            q_norm=self._qk_norm(f"{prefix}self_attn.q_norm", config.num_heads),
            k_norm=self._qk_norm(f"{prefix}self_attn.k_norm", config.num_kv_heads),
            o=o,
            o_bias=o_bias,
            attention_out_norm=norm(names.attention_out) if sandwich else None,
            mlp_norm=norm(names.mlp) if has_mlp_norm else None,
            gate_up=gate_up,
            gate_up_bias=gate_up_bias,
            down=down,
            down_bias=down_bias,
            mlp_out_norm=norm(names.mlp_out) if sandwich else None,
            experts=experts,
        )

    def _group(self, prefix: str, group: Group, whole: Group) -> tuple[Weight, torch.Tensor | None]:
        """The group's projections stacked in one allocation, and their biases. whole: the same,
        where `group` is a shard's."""
        if self._shard is not None:
            for module, _, out_features in whole.projections:
                shape = (out_features, whole.in_features)
                self._checkpoint.check(f"{prefix}{module}.weight", shape)
        bias = self._empty(group.out_features) if group.has_bias else None
        if self._shard is not None:
            weight = self._empty(group.out_features, group.in_features)
            return self._group_part(prefix, whole, weight, bias, self._shard)
        modules = [(f"{prefix}{each.module}", each.out_features) for each in group.projections]
        for module, start, count in group.projections:
            if bias is not None:
                self._checkpoint.copy_into(bias[start : start + count], f"{prefix}{module}.bias")
        return self._matrices.read(modules, group.in_features), bias

    def _group_part(
        self,
        prefix: str,
        whole: Group,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        shard: Shard,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `_group`. Where ranks' outputs are added up, the first rank alone adds the bias."""
        start = 0
        for module, _, out_features in whole.projections:
            shape = torch.Size((out_features, whole.in_features))
            columns = shard.columns(module)
            whole_bias = None
            if bias is not None:
                whole_bias = self._tensor(f"{prefix}{module}.bias", out_features)
            for rows in shard.rows(module):
                end = start + rows.stop - rows.start
                self._checkpoint.copy_part_into(
                    weight[start:end], f"{prefix}{module}.weight", shape, rows, columns
                )
                if bias is not None and whole_bias is not None:
                    bias[start:end] = whole_bias[rows]
                start = end
        adds_up = weight.shape[1] < whole.in_features
        return weight, None if adds_up and not shard.is_first else bias

    def _norm(self, name: str, size: int) -> torch.Tensor:
        traits, is_offset = self._config.traits, self._config.unit_offset_norms
        if not traits.layer_norms and not is_offset:
            return self._tensor(f"{name}.weight", size)
        dtype = torch.float32 if is_offset else self._dtype
        vectors = torch.zeros(1 + traits.layer_norms, size, dtype=dtype, device=self._device)
        self._checkpoint.copy_into(vectors[0], f"{name}.weight")
        if is_offset:
            vectors[0] += 1.0
        if traits.norm_biases:
            self._checkpoint.copy_into(vectors[1], f"{name}.bias")
        return vectors if traits.layer_norms else vectors[0]

    def _qk_norm(self, name: str, num_heads: int) -> torch.Tensor | None:
        config, shard = self._config, self._shard
        if not config.qk_norm:
            return None
        if config.traits.head_layer_norms:
            heads = self._tensor(f"{name}.weight", num_heads, config.head_dim)
            return heads if shard is None else heads.chunk(shard.size)[shard.rank].clone()
        return self._norm(name, config.head_dim * (num_heads if config.whole_qk_norms else 1))

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        self._checkpoint.check(name, shape)
        target = self._empty(*shape)
        self._checkpoint.copy_into(target, name)
        return target

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)


def _layer(index: int) -> str:
    """Before the names of a layer's modules."""
    return f"model.layers.{index}."
