"""Which part of the model one of several ranks holds.

Megatron's scheme (Shoeybi et al. 2019, section 3): q, k, v, gate and up by outputs, o and down by
inputs, the head by vocabulary. So a rank computes with heads, channels and tokens of its own, and
two sums over the ranks make a layer. Embedding and norms are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from dataplane.errors import UnsupportedModelError
from dataplane.models.config import ModelConfig
from dataplane.models.experts import refuse_ranks as refuse_ranks_of_experts
from dataplane.models.quantization.description import refuse_ranks
from dataplane.models.shapes import layer_groups

_BY_INPUT = ("o", "down")


@dataclass(frozen=True)
class Shard:
    """The part of rank `rank` of `size`. config: of the whole model.

    Raises: UnsupportedModelError when the model cannot be cut so.
    """

    config: ModelConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size
        if self.config.quantization is not None and self.size > 1:
            raise refuse_ranks(self.config.quantization, self.size)
        if self.config.experts is not None and self.size > 1:
            raise refuse_ranks_of_experts(self.size)
        if self.config.whole_qk_norms and self.size > 1:
            raise _refuse_whole_norms(self.size)
        for field, count in (
            ("num_key_value_heads", self.config.num_kv_heads),
            ("num_attention_heads", self.config.num_heads),
            ("intermediate_size", self.config.intermediate_size),
        ):
            if count % self.size:
                raise UnsupportedModelError(
                    "TENSOR_PARALLEL_MISFIT",
                    f"--tensor-parallel {self.size}: the model's {field} is {count}, which is no"
                    f" multiple of it; use a divisor of {count}",
                    {
                        "field": field,
                        "value": str(count),
                        "tensor_parallel": str(self.size),
                    },
                )

    @cached_property
    def local(self) -> ModelConfig:
        """The shape of what this rank computes, equal on all of them; its vocabulary is whole."""
        config, size = self.config, self.size
        return replace(
            config,
            num_heads=config.num_heads // size,
            num_kv_heads=config.num_kv_heads // size,
            intermediate_size=config.intermediate_size // size,
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def head_rows(self) -> int:
        """Of the head, on every rank; the last ranks' are padded with zeros."""
        return -(-self.config.vocab_size // self.size)

    @property
    def vocabulary(self) -> slice:
        """Tokens whose logits this rank computes; empty where there are fewer tokens than that."""
        start = min(self.rank * self.head_rows, self.config.vocab_size)
        return slice(start, min(start + self.head_rows, self.config.vocab_size))

    def rows(self, module: str) -> tuple[slice, ...]:
        """Of a layer's module's whole weight, its outputs, in order."""
        return self._parts[module][0]

    def columns(self, module: str) -> slice:
        """Likewise, its inputs."""
        return self._parts[module][1]

    @cached_property
    def _parts(self) -> dict[str, tuple[tuple[slice, ...], slice]]:
        config = self.config
        blocks = {
            "qkv": (config.q_size, config.kv_size, config.kv_size),
            "gate_up": (config.intermediate_size,) * 2,  # without a gate, the first alone is there
        }
        parts: dict[str, tuple[tuple[slice, ...], slice]] = {}
        for name, group in layer_groups(config, 0).items():
            for module, out_start, out_features in group.projections:
                if name in _BY_INPUT:
                    columns = self._share(0, group.in_features)
                    parts[module] = (slice(0, out_features),), columns
                    continue
                # A module may be several of the blocks in one (Phi-3), each of which is cut.
                rows: list[slice] = []
                start = 0
                for width in blocks[name]:
                    if out_start <= start < out_start + out_features:
                        rows.append(self._share(start - out_start, width))
                    start += width
                parts[module] = tuple(rows), slice(0, group.in_features)
        return parts

    def _share(self, start: int, width: int) -> slice:
        each = width // self.size
        return slice(start + self.rank * each, start + (self.rank + 1) * each)


def _refuse_whole_norms(size: int) -> UnsupportedModelError:
    """They would be one more sum over the ranks in each layer."""
    return UnsupportedModelError(
        "TENSOR_PARALLEL_NORMS",
        f"--tensor-parallel {size}: the norms of the model's q and k are of all heads together,"
        " which ranks would have to share; use --tensor-parallel 1",
        {"field": "architectures", "tensor_parallel": str(size)},
    )
