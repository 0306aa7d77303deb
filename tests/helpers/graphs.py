"""Graphs where there is no GPU: what was captured is run again over the same buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graph_setup import GraphSetup
from dataplane.engine.graphs import Capture


class Recorder:
    """Counts captures and replays. room: captures before memory is out."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.num_captured = 0
        self.num_replayed = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.num_captured == self.room:
            raise torch.OutOfMemoryError("no more")
        work()
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            work()

        return replay

    def setup(self, buckets: GraphBuckets) -> GraphSetup:
        return GraphSetup(buckets, Capture(self.record, lambda: 1000 * self.num_captured))
