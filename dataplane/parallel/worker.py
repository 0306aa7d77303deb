"""A rank beside the first: `python -m dataplane.parallel.worker SOCKET ARENA PARENT_PID`.

SOCKET and ARENA are descriptors: of the connection to rank 0, which started it, and of the memory
that adapters are read from. It ends with rank 0. Everything it does it is told; it decides nothing.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from dataplane.engine import process_settings
from dataplane.engine.batch import BatchBuilder, StepPlan
from dataplane.engine.device import Launched, device_for
from dataplane.engine.parent import die_with
from dataplane.lora.copier import PoolCopier, PoolCopy, waiter
from dataplane.lora.resident import ResidentAdapter
from dataplane.parallel.arena import mapped
from dataplane.parallel.group import RankGroup
from dataplane.parallel.messages import (
    Clear,
    Copied,
    FromWorker,
    Install,
    Load,
    Loaded,
    Remove,
    Roomy,
    Serve,
    Stop,
    ToWorker,
    Unable,
    pickled,
    receive_from_first,
)
from dataplane.parallel.model import LoadedShard, load_shard
from dataplane.pool.pool import PagePool
from kernels.lora.plan import PageRun

log = logging.getLogger(__name__)

_BUSY_POLL_S = 0.005  # between slices of a copy while a step runs
_BUSY_COPY_S = 2e-4
_IDLE_COPY_S = 5e-3


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s rank %(levelname)s %(message)s")
    descriptor, arena, parent = map(int, sys.argv[1:4])
    die_with(parent)
    process_settings.settle()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all of us
    with Connection(descriptor) as connection:
        try:
            return _serve(connection, arena)
        except (EOFError, ConnectionError):
            return 1  # rank 0 is gone


def _serve(connection: Connection, arena: int) -> int:
    try:
        load = receive_from_first(connection)
        assert isinstance(load, Load), load
        shard = load_shard(load.options, load.rank)
        region = mapped(arena, load.arena_bytes)
        if shard.device.type == "cuda":
            from dataplane.lora.pinned_arena import registered

            with torch.cuda.device(shard.device):
                registered(region)
        connection.send_bytes(pickled(Loaded(shard.room_bytes)))
        serve = receive_from_first(connection)
        if isinstance(serve, Stop):
            return 0
        assert isinstance(serve, Serve), serve
        pool = shard.make_pool(serve.num_pages)
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        reason = getattr(error, "reason", "START_FAILED")
        if reason == "START_FAILED":
            log.exception("the rank cannot start")
        metadata = dict(getattr(error, "metadata", {}))
        connection.send_bytes(pickled(Unable(reason, str(error), metadata)))
        return 2
    connection.send_bytes(pickled(Roomy()))
    follower = _Follower(connection, shard, pool, Path(serve.meeting), serve.max_context, region)
    gc.collect()  # as rank 0 does: what is here now stays
    gc.freeze()
    follower.run()
    os._exit(0)  # nothing here is worth a second of the interpreter's and torch's farewells


class _Ran(NamedTuple):
    """What a step leaves here: nothing that anybody reads."""

    def to_host(self) -> _Ran:
        return self


class _Follower:
    def __init__(
        self,
        connection: Connection,
        shard: LoadedShard,
        pool: PagePool,
        meeting: Path,
        max_context: int,
        region: torch.Tensor,
    ) -> None:
        """region: of the memory that all ranks share. Waits for the others."""
        self._connection = connection
        self._region = region
        self._rank = shard.shard.rank
        self._pool = pool
        group = RankGroup(self._rank, shard.shard.size, meeting, shard.device)
        self._decoder = shard.make_decoder(max_context, group, pool)
        self._adapters = _Adapters(self._pool)
        self._batches = BatchBuilder(shard.shard.local, self._pool, self._adapters)
        self._device = device_for(shard.device)
        self._flights: deque[Launched[_Ran]] = deque()

    def run(self) -> None:
        """Until it is told to stop. Raises: EOFError when rank 0 is gone."""
        while True:
            if self._connection.poll(self._patience_s()):
                message = receive_from_first(self._connection)
                if isinstance(message, Stop):
                    return
                self._take(message)
            self._reap()
            self._adapters.advance(_BUSY_COPY_S if self._flights else _IDLE_COPY_S)
            for told in self._adapters.progress():
                self._send(told)

    def _patience_s(self) -> float | None:
        if not self._adapters.is_copying:
            return None
        return _BUSY_POLL_S if self._flights else 0.0

    def _take(self, message: ToWorker) -> None:
        match message:
            case StepPlan():
                self._launch(message)
            case Clear(pages):
                for page in pages:
                    self._pool.clear(page)
            case Install():
                self._adapters.install(message, self._pages_of(message))
            case Remove(_, digest):
                self._adapters.remove(digest)
            case _:
                raise AssertionError(message)

    def _pages_of(self, message: Install) -> torch.Tensor:
        """[num_layers, num_pages, page_elems]: this rank's part of the shared memory."""
        shape = self._pool.data.shape[0], len(message.page_ids), self._pool.page_elems
        dtype = self._pool.data.dtype
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        start = message.offset + self._rank * num_bytes
        return self._region[start : start + num_bytes].view(dtype).view(shape)

    def _launch(self, plan: StepPlan) -> None:
        batch = self._batches.batch_of(plan)

        def work() -> _Ran:
            try:
                self._decoder.forward(batch, self._pool.data, self._pool.page_tokens)
            except BaseException:  # the others wait for this one: nothing is left to do
                log.exception("a step failed")
                os._exit(1)
            return _Ran()

        self._flights.append(self._device.launch(work))

    def _reap(self) -> None:
        while self._flights and self._flights[0].is_done():
            self._flights.popleft().wait()

    def _send(self, message: FromWorker) -> None:
        self._connection.send_bytes(pickled(message))


class _Adapters:
    """Those in the pool, as rank 0 has them; a HeldAdapters."""

    def __init__(self, pool: PagePool) -> None:
        self._copier = PoolCopier(pool.data)
        self._by_digest: dict[str, ResidentAdapter] = {}
        self._told: dict[int, tuple[PoolCopy, int]] = {}  # copies, and layers in when last told

    @property
    def is_copying(self) -> bool:
        return bool(self._copier.num_copies)

    def held(self, digest: str) -> ResidentAdapter:
        return self._by_digest[digest]

    def waiter(self, digests: Iterable[str]) -> Callable[[int], None] | None:
        copies = [self._by_digest[each].copy for each in dict.fromkeys(digests)]
        return waiter([copy for copy in copies if copy.remaining_bytes])

    def install(self, message: Install, pages: torch.Tensor) -> None:
        assert message.digest not in self._by_digest
        run = PageRun.of(message.page_ids)
        copy = self._copier.begin(pages, run)
        self._told[message.copy] = copy, -1
        self._by_digest[message.digest] = ResidentAdapter(
            message.digest, message.layout, message.page_ids, run, pages.nbytes, _never, copy
        )

    def remove(self, digest: str) -> None:
        self._copier.cancel(self._by_digest.pop(digest).copy)

    def advance(self, within_s: float) -> None:
        if self._copier.num_copies:
            self._copier.advance(within_s)
            self._copier.take_ended()

    def progress(self) -> list[Copied]:
        """Of copies that are further than when last asked."""
        news: list[Copied] = []
        for number, (copy, told) in list(self._told.items()):
            layers, left = copy.num_layers_in, copy.remaining_bytes
            if layers != told or not left:
                news.append(Copied(number, layers, left))
                self._told[number] = copy, layers
            if not left:
                del self._told[number]
        return news


def _never(_adapter: ResidentAdapter) -> int:
    raise AssertionError("rank 0 decides what goes")


if __name__ == "__main__":
    sys.exit(main())
