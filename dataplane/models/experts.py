"""Mixtures of experts: what config.json says of them, and reading their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dataplane.errors import CheckpointError, UnsupportedModelError
from dataplane.models.checkpoint import Checkpoint
from dataplane.models.families import ExpertsKind
from dataplane.models.fields import unsupported
from kernels.experts.weights import ExpertWeights
from kernels.gpu.dispatch import interpreting

_MOST_EXPERTS = 1024
_MAX_SIZE = 1 << 24  # far beyond any model's


@dataclass(frozen=True)
class Experts:
    """The shape of a model's mixtures of experts."""

    num_experts: int
    top_k: int  # experts of a token
    intermediate_size: int  # of each
    shared_intermediate_size: int  # of the expert that every token goes through, too; 0: none
    normalizes: bool  # the shares of a token's experts sum up to 1
    sparse_layers: tuple[bool, ...]  # which layers have one; the others' MLPs are dense
    has_mixtral_names: bool = field(default=False, repr=False)  # else Qwen's

    def num_weights(self, hidden: int) -> int:
        """Of all experts' matrices, but for the shared ones'."""
        each = 3 * hidden * self.intermediate_size
        return sum(self.sparse_layers) * self.num_experts * each

    def activation_elems(self, hidden: int, itemsize: int) -> int:
        """What a token takes on a GPU while a mixture is computed, of `itemsize` bytes each: of its
        experts the activations and the outputs, these in float32, what adapters add and a copy of
        the inputs for these, and its logits; and what its shared expert takes."""
        adapters = 2 * self.intermediate_size + 2 * hidden
        each = self.intermediate_size + hidden * 4 // itemsize + adapters
        shared = 3 * self.shared_intermediate_size + hidden
        return self.top_k * each + self.num_experts + shared


_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mixtral": {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336},
    "qwen": {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "decoder_sparse_step": 1,
    },
    "qwen shared": {
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1,
    },
}


def read_experts(fields: Mapping[str, Any], kind: ExpertsKind, num_layers: int) -> Experts | None:
    """None: every layer is dense.

    fields: of config.json. Raises: UnsupportedModelError.
    """
    if not kind:
        return None
    if fields.get("quantization_config") or fields.get("compression_config"):
        raise UnsupportedModelError(
            "QUANTIZED_EXPERTS",
            "config.json: quantization_config: quantised mixtures of experts are not served; take"
            " the checkpoint that it was made of, in bfloat16 or float16",
            {"field": "quantization_config"},
        )
    known = _DEFAULTS[kind]

    def count(name: str) -> int:
        return _count(name, fields.get(name, known[name]))

    num_experts = _num_experts(fields, known["num_experts"])
    top_k = count("num_experts_per_tok")
    if top_k > num_experts:
        raise unsupported("num_experts_per_tok", top_k, f"at most the {num_experts} experts")
    if kind == "mixtral":
        inter = count("intermediate_size")
        return Experts(num_experts, top_k, inter, 0, True, (True,) * num_layers, True)
    _refuse_windows(fields)
    normalizes = fields.get("norm_topk_prob", False)
    if not isinstance(normalizes, bool):
        raise unsupported("norm_topk_prob", normalizes, "true or false")
    shared = count("shared_expert_intermediate_size") if kind == "qwen shared" else 0
    inter = count("moe_intermediate_size")
    sparse = _sparse_layers(fields, count("decoder_sparse_step"), num_layers)
    return Experts(num_experts, top_k, inter, shared, normalizes, sparse)


def _num_experts(fields: Mapping[str, Any], default: int) -> int:
    """Which versions of transformers write under two names."""
    names = [name for name in ("num_experts", "num_local_experts") if fields.get(name) is not None]
    counts = [_count(name, fields[name]) for name in names]
    if len(set(counts)) > 1:
        raise unsupported("num_local_experts", counts[1], f"what num_experts is, {counts[0]}")
    found = counts[0] if counts else default
    if found > _MOST_EXPERTS:
        raise unsupported(names[0], found, f"at most {_MOST_EXPERTS}")
    return found


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
        raise unsupported(name, value, f"a whole number from 1 to {_MAX_SIZE}")
    return value


def _sparse_layers(fields: Mapping[str, Any], step: int, num_layers: int) -> tuple[bool, ...]:
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(
        not isinstance(each, int) or isinstance(each, bool) for each in dense
    ):
        raise unsupported("mlp_only_layers", dense, "a list of layers' numbers")
    return tuple(n not in dense and (n + 1) % step == 0 for n in range(num_layers))


def _refuse_windows(fields: Mapping[str, Any]) -> None:
    """Versions of transformers slide different layers."""
    if fields.get("use_sliding_window"):
        raise unsupported("use_sliding_window", fields["use_sliding_window"], "false")
    if "sliding_attention" in (fields.get("layer_types") or ()):
        raise unsupported("layer_types", "sliding_attention", "full_attention")


def refuse_ranks(size: int) -> UnsupportedModelError:
    return UnsupportedModelError(
        "TENSOR_PARALLEL_EXPERTS",
        f"--tensor-parallel {size}: a mixture of experts is served by one device; use"
        " --tensor-parallel 1, and more data planes for more speed",
        {"tensor_parallel": str(size)},
    )


class ExpertReader:
    """Reads layers' experts as checkpoints have them: apart, under the names of Mixtral or Qwen, or
    in one piece, as transformers 5 has them in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        experts: Experts,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._experts = experts
        self._hidden = hidden
        self._dtype = dtype
        self._device = device

    def read(self, layer: str) -> ExpertWeights:
        """layer: what the names of its tensors begin with, "model.layers.3.".

        Raises: CheckpointError.
        """
        experts, hidden, inter = self._experts, self._hidden, self._experts.intermediate_size
        block = f"{layer}mlp."
        if self._checkpoint.parts(f"{layer}block_sparse_moe"):
            block = f"{layer}block_sparse_moe."
        router = self._tensor(f"{block}gate.weight", experts.num_experts, hidden)
        if "gate_up_proj" in self._checkpoint.parts(f"{block}experts"):
            gate_up = self._read_whole(f"{block}experts.gate_up_proj", 2 * inter, hidden)
            down = self._read_whole(f"{block}experts.down_proj", hidden, inter)
        else:
            gate_up, down = self._read_apart(f"{block}experts")
        shared_gate = None
        if experts.shared_intermediate_size:
            shared_gate = self._tensor(f"{block}shared_expert_gate.weight", 1, hidden)
        return ExpertWeights(router, gate_up, down, shared_gate, experts.top_k, experts.normalizes)

    def _read_apart(self, experts: str) -> tuple[_Matrices, _Matrices]:
        """gate_up and down."""
        self._refuse_more(experts)
        hidden, inter = self._hidden, self._experts.intermediate_size
        names = ("w1", "w3", "w2") if "block_sparse_moe" in experts else _QWEN_NAMES
        tensors = [
            [f"{experts}.{expert}.{name}.weight" for name in names]
            for expert in range(self._experts.num_experts)
        ]
        for gate, up, out in tensors:
            self._checkpoint.check(gate, (inter, hidden))
            self._checkpoint.check(up, (inter, hidden))
            self._checkpoint.check(out, (hidden, inter))
        gate_up, down = self._matrices(2 * inter, hidden), self._matrices(hidden, inter)
        for expert, (gate, up, out) in enumerate(tensors):
            self._checkpoint.copy_into(gate_up[expert][:inter], gate)
            self._checkpoint.copy_into(gate_up[expert][inter:], up)
            self._checkpoint.copy_into(down[expert], out)
        return gate_up, down

    def _read_whole(self, name: str, rows: int, columns: int) -> _Matrices:
        shape = torch.Size((self._experts.num_experts, rows, columns))
        self._checkpoint.check(name, shape)
        matrices = self._matrices(rows, columns)
        for expert, matrix in enumerate(matrices):
            self._checkpoint.copy_item_into(matrix, name, shape, expert)
        return matrices

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        self._checkpoint.check(name, shape)
        tensor = self._empty(*shape)
        self._checkpoint.copy_into(tensor, name)
        return tensor

    def _refuse_more(self, experts: str) -> None:
        count = self._experts.num_experts
        extra = self._checkpoint.parts(f"{experts}.{count}")
        if extra:
            tensor = f"{experts}.{count}.{min(extra)}"
            raise CheckpointError(
                "TENSOR_SHAPE",
                f"the checkpoint has {tensor}; config.json says {count} experts: they are of two"
                " models",
                {"tensor": tensor},
            )

    def _matrices(self, rows: int, columns: int) -> _Matrices:
        """On a GPU in one piece, for its kernels; on a CPU each is packed by itself."""
        count = self._experts.num_experts
        if self._device.type == "cpu" and not interpreting():
            return [self._empty(rows, columns) for _ in range(count)]
        return self._empty(count, rows, columns)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)


_Matrices = list[torch.Tensor] | torch.Tensor  # as kernels.experts.weights.Matrices, plain
_QWEN_NAMES = ("gate_proj", "up_proj", "down_proj")
