"""What ranks tell each other within a step, by torch.distributed: NCCL on GPUs, gloo on CPU."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_S = 60.0
"""A rank that comes to none of a step's sums for so long is lost."""
_LOOPBACK = "127.0.0.1"
_LOOPBACK_INTERFACE = "lo"


class RankGroup:
    """Collective: every rank makes one, and makes the same calls in the same order.

    Calls wait for no device: on a GPU they are queued on the current stream.
    """

    def __init__(self, rank: int, size: int, meeting: Path, device: torch.device) -> None:
        """meeting: a file that is not there yet, in a directory that is nobody else's."""
        self.rank = rank
        self.size = size
        torch_dist: Any = dist  # its stubs lack backends, and what torch itself makes them with
        # Not torch's default group, of which a process has one: engines come and go.
        if device.type == "cuda":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK_INTERFACE)  # all are here
            backend = torch_dist.ProcessGroupNCCL
            options = backend.Options()
        else:
            backend = torch_dist.ProcessGroupGloo
            options = backend._Options()
            options._devices = [backend.create_device(hostname=_LOOPBACK)]
        options._timeout = timedelta(seconds=TIMEOUT_S)
        store = torch_dist.FileStore(str(meeting), size)
        self._group = backend(store, rank, size, options)

    def share(self, values: torch.Tensor) -> None:
        """Rank 0's values are everybody's, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([values], options).wait()

    def add_up(self, part: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        """The sum over the ranks of `part`, plus `delta` where given; in place of `part`."""
        if delta is not None:
            part += delta
        self._group.allreduce([part]).wait()
        return part

    def gather_logits(self, part: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """part: [num_logits, head_rows] of this rank's tokens. Rank 0 gets [num_logits,
        vocab_size]; the others get back their own part."""
        if not len(part):
            return part.new_empty((0, vocab_size)) if self.rank == 0 else part
        options = dist.GatherOptions()
        options.rootRank = 0
        if self.rank:
            self._group.gather([], [part], options).wait()
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._group.gather([parts], [part], options).wait()
        return torch.cat(parts, dim=1)[:, :vocab_size].contiguous()
