"""How one adapter's matrices lie in its pages: what shrink and expand address.

An adapter owns a list of pages. In each layer, its pages' slices of that layer, taken in order,
form one flat array of `num_pages * page_elems` elements; offsets below count elements in it.

A projection group is a set of projections that read the same input (q/k/v; gate/up). Its A rows lie
end to end, so one product computes all of its intermediates:

    a_offset: A, [total_rank, in_features], row-major; rows of the first projection first
    b_offset: for each projection, scaling * B transposed, [rank, out_features], row-major

Of a mixture of experts a group has as many of these as there are experts, expert_elems apart; the
offsets are those of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np


class ExpandSlice(NamedTuple):
    """One projection of a group."""

    rank_start: int  # its first column in the group's intermediate
    rank: int
    b_offset: int
    out_start: int  # its first column in the group's output
    out_features: int


class GroupPlan(NamedTuple):
    """One adapter's part of one projection group in one layer."""

    total_rank: int
    in_features: int
    a_offset: int
    slices: tuple[ExpandSlice, ...]
    expert_elems: int = 0  # from one expert's matrices to the next one's; 0: there are no experts

    def of_expert(self, expert: int) -> GroupPlan:
        """That one's alone."""
        shift = expert * self.expert_elems
        slices = tuple(each._replace(b_offset=each.b_offset + shift) for each in self.slices)
        return self._replace(a_offset=self.a_offset + shift, slices=slices, expert_elems=0)


@dataclass(frozen=True)
class PageRun:
    """An adapter's pages, in order."""

    ids: np.ndarray[Any, Any]  # [num_pages] int64
    first: int  # the first id when the ids are consecutive (reads need no copy), else -1

    @staticmethod
    def of(page_ids: list[int]) -> PageRun:
        consecutive = all(b == a + 1 for a, b in itertools.pairwise(page_ids))
        first = page_ids[0] if consecutive and page_ids else -1
        return PageRun(np.array(page_ids, dtype=np.int64), first)


class Segment(NamedTuple):
    """Tokens [start, end) of a batch that go through one adapter in this group."""

    start: int
    end: int
    pages: PageRun
    plan: GroupPlan


MAX_SLICES = 3
BLOCK_TOKENS = 16
"""What one processor core takes of a segment at once."""
BLOCK_FIELDS = 4
PLAN_SLICE_FIELDS = 5
PLAN_EXPERT_ELEMS = 3 + MAX_SLICES * PLAN_SLICE_FIELDS
PLAN_FIELDS = PLAN_EXPERT_ELEMS + 1


class RowFormat(NamedTuple):
    """What kernels must know of rows of integers without knowing their meaning."""

    num_fields: int
    positions: tuple[int, ...]  # fields that hold offsets or columns
    optional: bool  # a negative offset says that there is none
    rank_field: int  # the field that bounds the columns of the intermediate, or -1
    rank_fields: tuple[int, ...] = ()  # of its projections


PLAN_ROW = RowFormat(
    PLAN_FIELDS,
    (
        1,
        *(3 + each * PLAN_SLICE_FIELDS + at for each in range(MAX_SLICES) for at in (2, 3, 4)),
        PLAN_EXPERT_ELEMS,
    ),
    False,
    0,
    tuple(3 + each * PLAN_SLICE_FIELDS + 1 for each in range(MAX_SLICES)),
)


def plan_row(plan: GroupPlan | None) -> list[int]:
    """A plan as integers, for kernels: total_rank, a_offset, number of slices, then rank_start,
    rank, b_offset, out_start, out_features of each, and expert_elems. None, an adapter without this
    group, is 0s."""
    if plan is None:
        return [0] * PLAN_FIELDS
    assert len(plan.slices) <= MAX_SLICES
    row = [plan.total_rank, plan.a_offset, len(plan.slices)]
    for part in plan.slices:
        row += part[:PLAN_SLICE_FIELDS]
    return row + [0] * (PLAN_EXPERT_ELEMS - len(row)) + [plan.expert_elems]


@dataclass(frozen=True)
class LoraSpans:
    """The adapters of one step: what is the same in all layers and groups."""

    spans: np.ndarray[Any, Any]  # [n, 2] int64: tokens start and end
    page_indptr: np.ndarray[Any, Any]  # [n + 1] int64
    page_ids: np.ndarray[Any, Any]  # [page_indptr[n]] int64
    runs: tuple[PageRun, ...]
    max_tokens: int  # of the longest span

    @cached_property
    def blocks(self) -> np.ndarray[Any, Any]:
        """[num_blocks, BLOCK_FIELDS] int64: span, first token of the block, tokens: at most
        BLOCK_TOKENS, and the expert, 0."""
        return np.array(
            [
                (span, first, min(BLOCK_TOKENS, end - first), 0)
                for span, (start, end) in enumerate(self.spans.tolist())
                for first in range(start, end, BLOCK_TOKENS)
            ],
            dtype=np.int64,
        ).reshape(-1, BLOCK_FIELDS)

    @staticmethod
    def of(spans: list[tuple[int, int]], runs: list[PageRun]) -> LoraSpans:
        counts = [len(run.ids) for run in runs]
        return LoraSpans(
            np.array(spans, dtype=np.int64).reshape(-1, 2),
            np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64),
            np.concatenate([np.empty(0, dtype=np.int64), *(run.ids for run in runs)]),
            tuple(runs),
            max((end - start for start, end in spans), default=0),
        )


class SegmentGroup(Sequence[Segment]):
    """The segments of one projection group in one layer: as arrays for kernels that take them
    whole, and one by one, made when asked for."""

    def __init__(
        self,
        common: LoraSpans,
        plans: np.ndarray[Any, Any],
        group_plans: Sequence[GroupPlan | None],
    ) -> None:
        """plans: [n, PLAN_FIELDS] int64, rows of `plan_row` of `group_plans`."""
        self.common = common
        self.plans = plans
        self.group_plans = group_plans

    @staticmethod
    def of(segments: Sequence[Segment]) -> SegmentGroup:
        """segments: disjoint, in order of start."""
        if isinstance(segments, SegmentGroup):
            return segments
        common = LoraSpans.of([each[:2] for each in segments], [each.pages for each in segments])
        plans = [each.plan for each in segments]
        rows = np.array([plan_row(plan) for plan in plans], dtype=np.int64)
        return SegmentGroup(common, rows.reshape(-1, PLAN_FIELDS), plans)

    @cached_property
    def segments(self) -> list[Segment]:
        """Those whose adapter has this group."""
        spans = self.common.spans.tolist()
        return [
            Segment(start, end, run, plan)
            for (start, end), run, plan in zip(
                spans, self.common.runs, self.group_plans, strict=True
            )
            if plan is not None
        ]

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> list[Segment]: ...
    def __getitem__(self, index: int | slice) -> Segment | list[Segment]:
        return self.segments[index]
