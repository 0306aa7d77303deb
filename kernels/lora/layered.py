"""The segments of a step in all layers and projection groups, for kernels that take them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from kernels.lora.plan import GroupPlan, LoraSpans, SegmentGroup


class LayeredSegments(Sequence[Mapping[str, SegmentGroup]]):
    """For each layer its groups by name, those that some adapter has; made when asked for. It never
    changes, so whoever has told a kernel of it need not look into it again."""

    def __init__(
        self,
        common: LoraSpans,
        names: Sequence[str],
        plans: np.ndarray[Any, Any],
        adapters: Sequence[Sequence[Mapping[str, GroupPlan]]],
    ) -> None:
        """names: of the groups. plans: [num_layers, num_groups, n, PLAN_FIELDS] int64, contiguous,
        rows of `plan_row`. adapters: of each span, and of each layer, the plans by name."""
        assert plans.flags.c_contiguous and plans.shape[1] == len(names)
        self.common = common
        self.names = names
        self.plans = plans
        # [num_layers, num_groups]
        self.is_used: np.ndarray[Any, Any] = np.any(plans[..., 0], axis=-1)
        self.max_rank = int(plans[..., 0].max(initial=0))
        self._adapters = adapters
        self._layers: list[Mapping[str, SegmentGroup] | None] = [None] * len(plans)

    def addresses(self, name: str) -> np.ndarray[Any, Any]:
        """[num_layers] int64: where the rows of this group lie, 0 where no adapter has it."""
        at = self.names.index(name)
        layer_bytes, group_bytes = self.plans.strides[:2]
        first = self.plans.ctypes.data + at * group_bytes
        addresses = first + layer_bytes * np.arange(len(self.plans), dtype=np.int64)
        return np.where(self.is_used[:, at], addresses, 0)

    def __len__(self) -> int:
        return len(self.plans)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, SegmentGroup]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, SegmentGroup]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> Mapping[str, SegmentGroup] | list[Mapping[str, SegmentGroup]]:
        if isinstance(index, slice):
            return [self[layer] for layer in range(*index.indices(len(self)))]
        made = self._layers[index]
        if made is None:
            plans = [layers[index] for layers in self._adapters]
            made = self._layers[index] = {
                name: SegmentGroup(
                    self.common, self.plans[index, at], [each.get(name) for each in plans]
                )
                for at, name in enumerate(self.names)
                if self.is_used[index, at]
            }
        return made
