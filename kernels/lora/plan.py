"""How one adapter's matrices lie in its pages: what shrink and expand address.

An adapter owns a list of pages. In each layer, its pages' slices of that layer, taken in order,
form one flat array of `num_pages * page_elems` elements; offsets below count elements in it.

A projection group is a set of projections that read the same input (q/k/v; gate/up). Its A rows lie
end to end, so one product computes all of its intermediates:

    a_offset: A, [total_rank, in_features], row-major; rows of the first projection first
    b_offset: for each projection, scaling * B transposed, [rank, out_features], row-major
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch


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


@dataclass(frozen=True)
class PageRun:
    """An adapter's pages, in order."""

    page_ids: torch.Tensor  # [num_pages] int64, on the pool's device
    first: int  # the first id when the ids are consecutive (reads need no copy), else -1

    @staticmethod
    def of(page_ids: list[int], device: torch.device) -> PageRun:
        consecutive = all(b == a + 1 for a, b in itertools.pairwise(page_ids))
        ids = torch.tensor(page_ids, dtype=torch.int64, device=device)
        return PageRun(ids, page_ids[0] if consecutive and page_ids else -1)


class Segment(NamedTuple):
    """Tokens [start, end) of a batch that go through one adapter in this group."""

    start: int
    end: int
    pages: PageRun
    plan: GroupPlan
