"""Adapters on a mixture of experts for tests, in scattered pages that hold NaN where no weight is;
and what they mean: the mixture whose weights they were added to, token by token, in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from kernels.experts.lora import ExpertLora
from kernels.experts.weights import ExpertWeights
from kernels.gpu.dispatch import uses_triton
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.op import LoraSegments
from kernels.lora.plan import ExpandSlice, GroupPlan, LoraSpans, PageRun, SegmentGroup, plan_row
from tests.kernels.expert_cases import expected_mixture

PAGE_ELEMS = 64


class Part(NamedTuple):
    """Tokens of a batch, and the ranks of their adapter: of the router, of gate and up (as one
    projection, or apart) and of down. 0 and (): it has none. () as a whole: base-only."""

    num_tokens: int
    ranks: tuple[int, tuple[int, ...], int] | tuple[()] = ()


class Adapter(NamedTuple):
    """Its matrices, dense, in float64, of all experts: what weights become."""

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class ExpertLoraCase:
    def __init__(self, weights: ExpertWeights, parts: Sequence[Part], *, seed: int = 0) -> None:
        """weights: not packed."""
        self._weights = weights
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self._device = weights.router.dtype, weights.router.device
        made = [self._make(part) for part in parts if part.ranks]
        sizes = [-(-len(flat) // PAGE_ELEMS) for _, _, flat in made]
        ids = list(range(sum(sizes) + 3))
        random.Random(seed).shuffle(ids)
        pages = torch.full((len(ids), PAGE_ELEMS), float("nan"))
        runs: list[PageRun] = []
        for (_, _, flat), size in zip(made, sizes, strict=True):
            mine, ids = ids[:size], ids[size:]
            rest = pages.new_full((size * PAGE_ELEMS - len(flat),), float("nan"))
            pages[mine] = torch.cat([flat, rest]).view(size, PAGE_ELEMS)
            runs.append(PageRun.of(mine))
        self.layer_pages = pages.to(self._device, self._dtype)
        self.adapters: list[Adapter | None] = []
        spans: list[tuple[int, int]] = []
        start, having = 0, iter(made)
        for part in parts:
            end = start + part.num_tokens
            dense = None
            if part.ranks:
                dense = next(having)[1]
                spans.append((start, end))
            self.adapters += [dense] * part.num_tokens
            start = end
        self.common = LoraSpans.of(spans, runs)
        self._plans = [plans for plans, _, _ in made]

    def _normal(self, *shape: int) -> torch.Tensor:
        """As the pool holds it."""
        values = torch.randn(*shape, generator=self._generator) * shape[-1] ** -0.5
        return values.to(self._dtype).float()

    def _make(self, part: Part) -> tuple[tuple[GroupPlan | None, ...], Adapter, torch.Tensor]:
        weights = self._weights
        count, hidden, inter = (
            weights.num_experts,
            weights.router.shape[1],
            weights.down[0].shape[1],
        )
        assert part.ranks
        of_router, of_gate_up, of_down = part.ranks
        router = torch.zeros(count, hidden, dtype=torch.float64)
        gate_up = torch.zeros(count, 2 * inter, hidden, dtype=torch.float64)
        down = torch.zeros(count, hidden, inter, dtype=torch.float64)
        flat = [torch.full((8,), float("nan"))]  # what nobody reads
        plans: list[GroupPlan | None] = [None, None, None]

        def add(into: torch.Tensor, ranks: Sequence[int]) -> GroupPlan:
            """into: [out, in]. Projections share its rows evenly."""
            offset = sum(map(len, flat))
            a = self._normal(sum(ranks), into.shape[1])
            flat.append(a.flatten())
            slices: list[ExpandSlice] = []
            rank_start, width = 0, into.shape[0] // len(ranks)
            for index, rank in enumerate(ranks):
                b = self._normal(rank, width)
                slices.append(
                    ExpandSlice(rank_start, rank, sum(map(len, flat)), index * width, width)
                )
                of_a = a[rank_start : rank_start + rank]
                into[index * width : (index + 1) * width] += b.double().T @ of_a.double()
                flat.append(b.flatten())
                rank_start += rank
            return GroupPlan(rank_start, into.shape[1], offset, tuple(slices))

        if of_router:
            plans[0] = add(router, [of_router])
        begin = sum(map(len, flat))
        for expert in range(count):
            if of_gate_up:
                plan = add(gate_up[expert], of_gate_up)
                plans[1] = plans[1] or plan
            if of_down:
                plan = add(down[expert], [of_down])
                plans[2] = plans[2] or plan
        size = (sum(map(len, flat)) - begin) // count
        apart = [plan and plan._replace(expert_elems=size) for plan in plans[1:]]
        return (plans[0], *apart), Adapter(router, gate_up, down), torch.cat(flat)

    @property
    def lora(self) -> ExpertLora:
        """As engines make it for the device."""
        rows = np.array(
            [[[plan_row(each[at]) for each in self._plans] for at in range(3)]], dtype=np.int64
        )
        groups: list[LoraSegments | None] = []
        if uses_triton(self.layer_pages):
            metadata = LoraBatchMetadata.of(self.common, rows, self._device)
            groups = [metadata.group(0, at) for at in range(3)]
        else:
            by_group = zip(*self._plans, strict=True)
            groups = [
                SegmentGroup(self.common, rows[0, at], plans) for at, plans in enumerate(by_group)
            ]
        used = [group if rows[0, at, :, 0].any() else None for at, group in enumerate(groups)]
        return ExpertLora(self.layer_pages, *used)

    def expected(
        self, x: torch.Tensor, activation: str, shared: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One token at a time."""
        rows: list[torch.Tensor] = []
        for token, adapter in enumerate(self.adapters):
            weights = self._weights
            if adapter is not None:
                weights = replace(
                    weights,
                    router=_sum(weights.router, adapter.router),
                    gate_up=_sum(torch.stack(list(weights.gate_up)), adapter.gate_up),
                    down=_sum(torch.stack(list(weights.down)), adapter.down),
                )
            row = slice(token, token + 1)
            some = None if shared is None else shared[row]
            wide = x[row].to("cpu", weights.router.dtype)
            rows.append(expected_mixture(wide, _on_cpu(weights), activation, some))
        return torch.cat(rows)


def _sum(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return base.double().cpu() + delta


def _on_cpu(weights: ExpertWeights) -> ExpertWeights:
    gate = weights.shared_gate
    return replace(
        weights,
        router=weights.router.cpu(),
        shared_gate=None if gate is None else gate.to("cpu", weights.router.dtype),
    )
