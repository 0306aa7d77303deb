"""The weights of a mixture of experts (Shazeer et al. 2017; Fedus et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels.linear import cpu as linear
from kernels.linear.op import Weight, pack

Matrices = torch.Tensor | Sequence[Weight]
"""One for each expert: [experts, out, in] in one piece on a GPU, apart on a CPU, packed or not."""


class Panels(NamedTuple):
    """Of all experts, as kernels.linear.cpu packs them; the first of each pair is of gate_up, the
    second of down."""

    layouts: tuple[linear.Layout, linear.Layout]
    addresses: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # each [experts] int64
    num_panels: tuple[int, int]  # of one expert


@dataclass
class ExpertWeights:
    """Of one layer, all of one dtype and device."""

    router: torch.Tensor  # [experts, hidden]
    gate_up: Matrices  # each [2 * intermediate, hidden]
    down: Matrices  # each [hidden, intermediate]
    shared_gate: torch.Tensor | None  # [1, hidden]: how much of the shared expert counts
    top_k: int  # experts of a token, at most as many as there are
    normalizes: bool  # whether the shares of a token's experts sum up to 1
    # Once packed, where all matrices are in panels; they stay where they are.
    panels: Panels | None = field(default=None, repr=False)

    @property
    def num_experts(self) -> int:
        return self.router.shape[0]

    @property
    def intermediate_size(self) -> int:
        first = self.down[0]
        if isinstance(first, torch.Tensor) and first.dim() == 3:
            return linear.features_of(first)[0]
        return first.shape[1]

    def pack(self) -> None:
        """On CPU, brings each matrix into the layout that its product is fastest in."""
        self.gate_up, self.down = _packed(self.gate_up), _packed(self.down)
        self.panels = panels_of(self.gate_up, self.down)


def _packed(matrices: Matrices) -> Matrices:
    if isinstance(matrices, torch.Tensor):
        return matrices
    # One after the other, in place: beside the weights lies one matrix at a time.
    packed = list(matrices)
    for index, matrix in enumerate(packed):
        packed[index] = pack(matrix)
    return packed


def panels_of(gate_up: Matrices, down: Matrices) -> Panels | None:
    """None where not all matrices are in panels."""
    firsts: list[torch.Tensor] = []
    addresses: list[np.ndarray[Any, Any]] = []
    for matrices in (gate_up, down):
        if isinstance(matrices, torch.Tensor):
            return None
        packed = [each for each in matrices if isinstance(each, torch.Tensor) and each.dim() == 3]
        if len(packed) < len(matrices):
            return None
        firsts.append(packed[0])
        addresses.append(np.array([each.data_ptr() for each in packed], dtype=np.int64))
    first, second = firsts
    return Panels(
        (linear.layout_of(first), linear.layout_of(second)),  # which the shapes decide
        (addresses[0], addresses[1]),
        (first.shape[0], second.shape[0]),
    )
