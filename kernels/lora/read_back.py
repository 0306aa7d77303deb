"""From a step's metadata back to its segments: for the twin where a step was made for launches."""

from __future__ import annotations

from kernels.lora.metadata import LoraGroup
from kernels.lora.plan import (
    PLAN_EXPERT_ELEMS,
    PLAN_SLICE_FIELDS,
    ExpandSlice,
    GroupPlan,
    PageRun,
    Segment,
)


def segments_of(group: LoraGroup, in_features: int) -> list[Segment]:
    """Those whose adapter has the group, one for each tile. Waits for the device.

    in_features: of the adapters' input.
    """
    metadata = group.metadata
    rows, page_indptr = group.rows.tolist(), metadata.page_indptr.tolist()
    page_ids = metadata.page_ids.cpu().numpy()
    segments: list[Segment] = []
    for index, start, num_tokens, _ in metadata.tiles.tolist():
        if index < 0 or not rows[index][0]:
            continue
        total_rank, a_offset, num_slices = rows[index][:3]
        slices = [
            ExpandSlice(*rows[index][at : at + PLAN_SLICE_FIELDS])
            for at in range(3, 3 + num_slices * PLAN_SLICE_FIELDS, PLAN_SLICE_FIELDS)
        ]
        # Where they end is not said, and no kernel reads past what the plan says.
        run = PageRun(page_ids[page_indptr[index] :], -1)
        expert_elems = rows[index][PLAN_EXPERT_ELEMS]
        plan = GroupPlan(total_rank, in_features, a_offset, tuple(slices), expert_elems)
        segments.append(Segment(start, start + num_tokens, run, plan))
    return segments
