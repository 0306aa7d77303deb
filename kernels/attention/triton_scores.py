"""What both attention kernels are told about a layer's scores and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kernels.attention.triton_softmax import LOG2E

_SMALLEST_CASE = 64


@dataclass(frozen=True)
class Scores:
    num_kv_heads: int
    group: int  # query heads of one key head
    head_dim: int
    page_tokens: int
    scale: float
    window: int | None
    soft_cap: float | None

    @property
    def factor(self) -> float:
        """Of q @ k, to have scores in units of log2, or what tanh takes."""
        return self.scale / self.soft_cap if self.soft_cap else self.scale * LOG2E

    @property
    def cap(self) -> float:
        return self.soft_cap * LOG2E if self.soft_cap else 0.0

    def case(self, dtype: torch.dtype) -> str:
        """The tuning table's name for these tiles, as 128x2: head dimension by bytes."""
        return f"{max(block_dim(self.head_dim), _SMALLEST_CASE)}x{dtype.itemsize}"

    def constants(self) -> dict[str, Any]:
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "GROUP": self.group,
            "HEAD_DIM": self.head_dim,
            "PAGE_TOKENS": self.page_tokens,
            "HAS_WINDOW": self.window is not None,
            "HAS_CAP": self.soft_cap is not None,
        }


def block_dim(head_dim: int) -> int:
    return max(16, 1 << (head_dim - 1).bit_length())
