"""Where LoRA on mixtures of experts goes in an adapter's pages, and packing it there.

In a layer's flat array, the router as any group (dataplane/lora/layout.py), then one block for each
expert, all of one size, so that an expert's matrices are found by its number:

    A of gate_up [total_rank, hidden]; B of its projections; A of down [rank, intermediate]; B

Experts of one layer have one rank for each projection: the largest of theirs. What an adapter has
not, as where it changes some experts only, is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from dataplane.models.config import ModelConfig
from dataplane.models.shapes import (
    EXPERTS_DOWN,
    EXPERTS_GATE_UP,
    ROUTER,
    WHOLE_DOWN,
    WHOLE_GATE_UP,
    WHOLE_ROUTER,
    Group,
    Projection,
    mixture_groups,
)
from kernels.lora.plan import ExpandSlice, GroupPlan
from storage.adapter.experts import is_of_mixture, split_expert
from storage.adapter.manifest import AdapterManifest, LoraModule

_VECTOR = 8  # 16 bytes of 2-byte elements: what a GPU's thread reads at once

Write = Callable[[int, int, torch.Tensor], None]
"""Writes a matrix, row-major, to a layer's flat array, from an offset on."""


class _Part(NamedTuple):
    """A module's projection: its place in its group's output."""

    group: str
    projection: Projection


class MixturePlan:
    """One adapter's."""

    def __init__(self, config: ModelConfig, manifest: AdapterManifest) -> None:
        """manifest: that storage.adapter.match.check_base has passed."""
        self._num_experts = 0 if config.experts is None else config.experts.num_experts
        self._groups = [mixture_groups(config, layer) for layer in range(config.num_layers)]
        self._ranks: list[dict[_Part, int]] = [{} for _ in self._groups]
        for module in manifest.modules:
            if module.layer is not None and is_of_mixture(module.module):
                ranks, part = self._ranks[module.layer], self._part(module)
                ranks[part] = max(ranks.get(part, 0), module.rank)

    def layer(self, layer: int, offset: int) -> tuple[dict[str, GroupPlan], int]:
        """Plans of a layer's groups, from an offset on, and the offset after them."""
        if not self._ranks[layer]:
            return {}, offset
        router, offset = self._plan(layer, (ROUTER,), _whole(offset))
        begin = _whole(offset)
        experts, end = self._plan(layer, (EXPERTS_GATE_UP, EXPERTS_DOWN), begin)
        if not experts:
            return router, offset
        size = _whole(end - begin)
        plans = {name: plan._replace(expert_elems=size) for name, plan in experts.items()}
        return router | plans, begin + self._num_experts * size

    def _plan(
        self, layer: int, names: tuple[str, ...], offset: int
    ) -> tuple[dict[str, GroupPlan], int]:
        """One after the other."""
        plans: dict[str, GroupPlan] = {}
        for name in names:
            ranks = {
                part.projection: rank
                for part, rank in self._ranks[layer].items()
                if part.group == name
            }
            if ranks:
                plans[name], offset = _plan(self._groups[layer][name], ranks, offset)
        return plans, offset

    def pack(
        self,
        module: LoraModule,
        plans: Mapping[str, GroupPlan],
        a: torch.Tensor,
        b: torch.Tensor,
        write: Write,
    ) -> None:
        """plans: of the module's layer. a: as stored; b: transposed, [ranks, out], in the pool's
        dtype, scaled."""
        assert module.layer is not None
        group, projection = self._part(module)
        plan = plans[group]
        part = next(each for each in plan.slices if each.out_start == projection.out_start)
        if module.num_experts:
            a = a.view(module.num_experts, module.rank, -1)
            b = b.reshape(module.rank, module.num_experts, -1).transpose(0, 1)
            experts = range(module.num_experts)
        else:
            a, b = a[None], b[None]
            expert = max(0, split_expert(module.module)[1])
            experts = range(expert, expert + 1)
        a_offset = plan.a_offset + part.rank_start * plan.in_features
        for expert, of_a, of_b in zip(experts, a, b, strict=True):
            shift = expert * plan.expert_elems
            write(module.layer, a_offset + shift, of_a)
            write(module.layer, part.b_offset + shift, of_b)

    def _part(self, module: LoraModule) -> _Part:
        assert module.layer is not None
        groups = self._groups[module.layer]
        whole = _WHOLES.get(module.module)
        if whole is not None:
            return _Part(whole, Projection(module.module, 0, groups[whole].out_features))
        return next(
            _Part(name, projection)
            for name, group in groups.items()
            for projection in group.projections
            if projection.module == module.name
        )


_WHOLES = {WHOLE_ROUTER: ROUTER, WHOLE_GATE_UP: EXPERTS_GATE_UP, WHOLE_DOWN: EXPERTS_DOWN}


def _plan(group: Group, ranks: Mapping[Projection, int], offset: int) -> tuple[GroupPlan, int]:
    """ranks: of its projections, at least one."""
    a_offset, total_rank = offset, sum(ranks.values())
    offset += total_rank * group.in_features
    slices: list[ExpandSlice] = []
    rank_start = 0
    for part in sorted(ranks, key=lambda each: each.out_start):
        rank = ranks[part]
        slices.append(ExpandSlice(rank_start, rank, offset, part.out_start, part.out_features))
        rank_start += rank
        offset += rank * part.out_features
    return GroupPlan(total_rank, group.in_features, a_offset, tuple(slices)), offset


def _whole(elems: int) -> int:
    return -(-elems // _VECTOR) * _VECTOR
