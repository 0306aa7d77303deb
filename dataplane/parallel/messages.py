"""What rank 0 and its workers tell each other, over a socket that nobody else has.

Both ends are one program, started by one another: so these are pickled, as the standard library's
connections do it. No byte of a request, a model or an adapter is read that way.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import NamedTuple

from dataplane.engine.batch import StepPlan
from dataplane.engine_options import EngineOptions
from dataplane.lora.layout import AdapterLayout


class Load(NamedTuple):
    """The first message: what to load. arena_bytes: of the memory that all ranks share."""

    options: EngineOptions
    rank: int
    arena_bytes: int


class Serve(NamedTuple):
    """meeting: as RankGroup has it."""

    num_pages: int
    max_context: int
    meeting: str


class Clear(NamedTuple):
    pages: list[int]


class Install(NamedTuple):
    """offset: in the shared memory, of rank 0's pages; those of the other ranks follow in order."""

    copy: int
    digest: str
    layout: AdapterLayout
    page_ids: list[int]
    offset: int


class Remove(NamedTuple):
    """The adapter that `Install` of that copy brought."""

    copy: int
    digest: str


class Stop(NamedTuple):
    pass


ToWorker = Load | Serve | Clear | Install | Remove | Stop | StepPlan


class Loaded(NamedTuple):
    """room_bytes: that the device has left for a pool; 0 on CPU."""

    room_bytes: int


class Roomy(NamedTuple):
    """The worker has its pool."""


class Unable(NamedTuple):
    """The worker cannot start, as in dataplane.errors.DataPlaneError."""

    reason: str
    message: str
    metadata: dict[str, str]


class Copied(NamedTuple):
    """How far a copy is. The last one, of a copy that was cancelled too, has no remaining bytes:
    the worker reads the shared memory no more."""

    copy: int
    num_layers_in: int
    remaining_bytes: int


FromWorker = Loaded | Roomy | Unable | Copied


def pickled(message: ToWorker | FromWorker) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def receive_from_worker(connection: Connection) -> FromWorker:
    """Raises: EOFError, OSError when the worker is gone."""
    return pickle.loads(connection.recv_bytes())


def receive_from_first(connection: Connection) -> ToWorker:
    """Raises: EOFError, OSError when rank 0 is gone."""
    return pickle.loads(connection.recv_bytes())
