"""Rank 0's end: starts the workers, tells them what it does to its pool, and ends with them.

Workers follow: each does to its own pool, in the same order, what rank 0 did to its books, and
launches the same steps. They answer nothing on a step's path; what they tell is how far their
copies of adapters are. One that ends, whatever the reason, is told to `on_lost`: without it no step
ends any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from msgspec import structs

from dataplane.engine.batch import StepPlan
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.lora.copier import PoolCopy
from dataplane.lora.layout import HostAdapter
from dataplane.parallel.copies import CopyOnAllRanks, RemoteProgress
from dataplane.parallel.group import TIMEOUT_S, RankGroup
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
    receive_from_worker,
)
from storage.scratch import ScratchDir, sweep

log = logging.getLogger(__name__)

_SAFE_PATH = ("-P",) if sys.flags.safe_path else ()
WORKER_COMMAND = (sys.executable, *_SAFE_PATH, "-m", "dataplane.parallel.worker")
_SCRATCH_PREFIX = "chorale-ranks-"
_STOP_S = 2.0


class Ranks:
    """The workers of ranks 1 to size - 1; a `dataplane.pool.mirror.PoolMirror`.

    Not thread-safe. Made on the main thread, which workers do not outlive.
    """

    def __init__(
        self,
        options: EngineOptions,
        arena_descriptor: int,
        arena_bytes: int,
        on_lost: Callable[[str], None],
    ) -> None:
        """Starts them; they load while the caller goes on.

        on_lost: called on another thread, once, when one has ended that was not stopped.
        Raises: OSError when the command cannot be run.
        """
        sweep(_SCRATCH_PREFIX)
        self._directory = ScratchDir(_SCRATCH_PREFIX)
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._is_ending = False
        self._copies: dict[int, tuple[RemoteProgress, torch.Tensor]] = {}
        self._num_copies = 0
        self._to_clear: list[int] = []
        self._listeners: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        # The token is for the control plane, which rank 0 alone talks to.
        theirs = structs.replace(options, fleet_token="")
        try:
            for rank in range(1, options.tensor_parallel):
                worker = _Worker(rank, arena_descriptor)
                self._workers.append(worker)
                worker.send(pickled(Load(theirs, rank, arena_bytes)))
        except BaseException:
            self.kill()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the workers, in order of rank."""
        return [worker.process.pid for worker in self._workers]

    @property
    def num_ranks(self) -> int:
        return len(self._workers) + 1

    def wait_loaded(self) -> list[int]:
        """Bytes that each worker's device has for a pool. Raises: DataPlaneError."""
        rooms: list[int] = []
        for worker in self._workers:
            message = worker.receive()
            assert isinstance(message, Loaded), message
            rooms.append(message.room_bytes)
        return rooms

    def serve(self, num_pages: int, max_context: int, device: torch.device) -> RankGroup:
        """They make their pools, are listened to from then on, and meet. Raises: DataPlaneError."""
        meeting = self._directory.path / "meeting"
        self._send(Serve(num_pages, max_context, str(meeting)))
        for worker in self._workers:
            message = worker.receive()
            assert isinstance(message, Roomy), message
        for number, worker in enumerate(self._workers):
            thread = threading.Thread(
                target=self._listen, args=(number, worker), name=f"rank-{worker.rank}", daemon=True
            )
            thread.start()
            self._listeners.append(thread)
        return RankGroup(0, self.num_ranks, Path(meeting), device)

    def clear(self, page: int) -> None:
        self._to_clear.append(page)

    def install(self, host: HostAdapter, page_ids: list[int]) -> Callable[[PoolCopy], PoolCopy]:
        assert host.shared_offset >= 0, "packed for one rank"
        self._num_copies += 1
        number = self._num_copies
        progress = RemoteProgress(len(self._workers), host.pages.nbytes)
        with self._lock:
            self._copies[number] = progress, host.pages
        self._send_cleared()
        self._send(Install(number, host.digest, host.layout, page_ids, host.shared_offset))

        def remove() -> None:
            self._send(Remove(number, host.digest))

        return lambda local: CopyOnAllRanks(local, progress, remove)

    def step(self, plan: StepPlan) -> None:
        self._send_cleared()
        self._send(replace(plan, logit_spans=()))  # heads are rank 0's

    @property
    def num_copies(self) -> int:
        """That workers read shared memory for."""
        with self._lock:
            return len(self._copies)

    def close(self) -> None:
        """Stops them; whoever does not stop is killed. Idempotent."""
        with self._lock:
            self._is_ending = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.send(pickled(Stop()))
        end_s = time.monotonic() + _STOP_S
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end_s - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """At once: steps that wait for them end with an error. Idempotent."""
        with self._lock:
            self._is_ending = True
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        for thread in self._listeners:
            thread.join()
        for worker in self._workers:
            worker.connection.close()
        with self._lock:
            self._copies.clear()
        self._directory.remove()

    def _send_cleared(self) -> None:
        """Before anything may be written to those pages."""
        if self._to_clear:
            self._send(Clear(self._to_clear))
            self._to_clear = []

    def _send(self, message: ToWorker) -> None:
        """Raises: DataPlaneError when a worker does not take it."""
        data = pickled(message)
        for worker in self._workers:
            try:
                worker.send(data)
            except OSError as error:
                raise _lost(worker.rank, str(error)) from error

    def _listen(self, number: int, worker: _Worker) -> None:
        try:
            while True:
                message = receive_from_worker(worker.connection)
                assert isinstance(message, Copied), message
                self._note(number, message)
        except (EOFError, OSError):
            pass  # the end of the worker
        finally:
            with self._lock:
                is_news, self._is_ending = not self._is_ending, True
            if is_news:
                self._on_lost(f"rank {worker.rank} (pid {worker.process.pid}) is gone")

    def _note(self, number: int, message: Copied) -> None:
        with self._lock:
            if message.copy not in self._copies:
                return
            progress, _ = self._copies[message.copy]
            progress.note(number, message.num_layers_in, message.remaining_bytes)
            if not progress.remaining_bytes:
                del self._copies[message.copy]  # host memory may have it back


class _Worker:
    def __init__(self, rank: int, arena_descriptor: int) -> None:
        self.rank = rank
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # One that takes nothing for so long is as good as gone.
            seconds = struct.pack("ll", int(TIMEOUT_S), 0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            self.process = subprocess.Popen(
                [
                    *WORKER_COMMAND,
                    str(theirs.fileno()),
                    str(arena_descriptor),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                pass_fds=(theirs.fileno(), arena_descriptor),
            )
            self.connection = Connection(ours.detach())

    def send(self, data: bytes) -> None:
        self.connection.send_bytes(data)

    def receive(self) -> FromWorker:
        """Raises: DataPlaneError when it has ended, or cannot start."""
        try:
            message = receive_from_worker(self.connection)
        except (EOFError, OSError) as error:
            raise _lost(self.rank, "it ended while it was starting; its log says why") from error
        if isinstance(message, Unable):
            raise DataPlaneError(message.reason, message.message, message.metadata)
        return message


def _lost(rank: int, why: str) -> DataPlaneError:
    return DataPlaneError("RANK_LOST", f"rank {rank} is gone: {why}", {"rank": str(rank)})
