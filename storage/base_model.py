"""What the storage room must know of a base model: the names and shapes of its linear modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BaseModelSpec:
    """`layer_modules`: name within a decoder layer → (in, out), e.g. {"mlp.up_proj": (64, 256)}.

    `outer_modules`: name outside the layers → (in, out), e.g. {"lm_head": (hidden, vocab)}.
    Names are those of the Hugging Face implementation that adapters were trained on.
    """

    name: str
    num_layers: int
    layer_modules: Mapping[str, tuple[int, int]]
    outer_modules: Mapping[str, tuple[int, int]]

    @property
    def embedding(self) -> tuple[int, int] | None:
        """(vocab, hidden), the shape of the embedding and of the head; None without a head."""
        head = self.outer_modules.get("lm_head")
        return head and (head[1], head[0])
