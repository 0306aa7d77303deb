"""What the storage room must know of a base model: the names and shapes of its linear modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MixtureModule:
    """A part of mixtures of experts: in and out features of one expert's matrix, how many experts
    there are (0: a router, which maps to as many outputs), and the layers that have it."""

    in_features: int
    out_features: int
    num_experts: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class BaseModelSpec:
    """`layer_modules`: name within a decoder layer → (in, out), e.g. {"mlp.up_proj": (64, 256)}.

    `module_layers`: the same name → the layers that have it; all have those that are not in it.

    `mixture_modules`: parts of mixtures of experts, in both forms that adapters know them in
    (storage.adapter.experts): "mlp.experts.gate_up_proj", all experts' in one, and, with a number
    in place of the star, "mlp.experts.*.up_proj"; and the router, "mlp.gate".

    `outer_modules`: name outside the layers → (in, out), e.g. {"lm_head": (hidden, vocab)}.
    Names are those of the Hugging Face implementation that adapters were trained on.
    """

    name: str
    num_layers: int
    layer_modules: Mapping[str, tuple[int, int]]
    outer_modules: Mapping[str, tuple[int, int]]
    module_layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    mixture_modules: Mapping[str, MixtureModule] = field(default_factory=dict[str, MixtureModule])

    def layers_of(self, module: str) -> tuple[int, ...] | range:
        """Of one of `layer_modules`."""
        return self.module_layers.get(module, range(self.num_layers))

    def modules_of(self, layer: int) -> Iterator[str]:
        """Of one layer."""
        return (each for each in self.layer_modules if layer in self.layers_of(each))

    @property
    def embedding(self) -> tuple[int, int] | None:
        """(vocab, hidden), the shape of the embedding and of the head; None without a head."""
        head = self.outer_modules.get("lm_head")
        return head and (head[1], head[0])
