"""Keeps an engine running: starts it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from chorale.errors import ChoraleError
from chorale.restarts import RestartPolicy
from dataplane import channel
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_process import EngineProcess

log = logging.getLogger(__name__)

_QUICK_S = 30.0
_FIRST_DELAY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class KeeperOptions:
    """engine: what every engine is started with.

    hang_timeout_s: as EngineClient has it. first: a process that runs already, taken for the first
    engine. spawn: makes the process, not started, of every other one.
    """

    engine: EngineOptions
    hang_timeout_s: float
    first: EngineProcess | None = None
    spawn: Callable[[], EngineProcess] = EngineProcess


class EngineKeeper:
    """One engine after the other. Belongs to one event loop, on the main thread.

    start(), wait_ready() and teach() bring the first one up. After that: wait_lost(), then
    restart(), and so on; stop() at the end, at any moment.
    """

    def __init__(self, options: KeeperOptions) -> None:
        self._options = options
        self._lost = asyncio.Event()
        self._ready: channel.Ready | None = None
        self._vocabulary: channel.Vocabulary | None = None
        self._ready_at_s = 0.0
        self._restarts = RestartPolicy(quick_s=_QUICK_S, first_delay_s=_FIRST_DELAY_S)
        self._client = self._new_client(options.first or options.spawn())

    @property
    def client(self) -> EngineClient:
        """The engine of the moment. Between the loss of one and the next one's being ready it is
        the lost one, which answers every call with UnavailableError (ENGINE_LOST)."""
        return self._client

    @property
    def ready(self) -> channel.Ready:
        """What the engine of the moment announced."""
        assert self._ready is not None, "wait_ready() comes first"
        return self._ready

    async def start(self) -> None:
        """Raises: OSError when the engine's command cannot be run."""
        await self._client.start()

    async def wait_ready(self) -> channel.Ready:
        """What the first engine announces. Raises: as EngineClient.wait_ready."""
        self._ready = await self._client.wait_ready()
        self._ready_at_s = time.monotonic()
        return self._ready

    async def teach(self, vocabulary: channel.Vocabulary) -> None:
        """Tells the first engine, and those to come before they count as ready. Raises: as
        EngineClient.teach."""
        self._vocabulary = vocabulary
        await self._client.teach(vocabulary)
        self._ready_at_s = time.monotonic()

    async def wait_lost(self) -> None:
        """Until the engine of the moment is lost."""
        await self._lost.wait()

    async def restart(self) -> bool:
        """Replaces the lost engine by a new one that is ready. False: it is of no use."""
        served_s = time.monotonic() - self._ready_at_s
        while True:
            await self._client.stop()
            delay_s = self._restarts.after_end(served_s)
            if delay_s is None:
                log.error("the engine was lost again and again; giving up")
                return False
            log.warning("starting the engine again in %.1f s", delay_s)
            await asyncio.sleep(delay_s)
            served_s = 0.0
            ready = await self._start_anew()
            if ready is None:
                continue
            if _model(ready) != _model(self.ready):
                log.error("the model's files have changed; a data plane serves one model only")
                return False
            self._ready, self._ready_at_s = ready, time.monotonic()
            log.info("the engine serves again (pid %d)", self._client.pid)
            return True

    async def stop(self) -> None:
        """Stops the engine. Idempotent."""
        await self._client.stop()

    async def _start_anew(self) -> channel.Ready | None:
        client = self._new_client(self._options.spawn())
        try:
            await client.start()
            ready = await client.wait_ready()
            if self._vocabulary is not None:
                await client.teach(self._vocabulary)
        except (ChoraleError, DataPlaneError, OSError) as error:
            log.error("the engine could not be started again: %s", error)
            await client.stop()
            return None
        except BaseException:
            await client.stop()
            raise
        self._lost.clear()
        self._client = client
        if client.is_lost:  # in the moment since it was ready
            self._lost.set()
        return ready

    def _new_client(self, process: EngineProcess) -> EngineClient:
        options = self._options

        def on_lost(_reason: str) -> None:
            if client is self._client:
                self._lost.set()

        client = EngineClient(
            options.engine,
            process=process,
            hang_timeout_s=options.hang_timeout_s,
            on_lost=on_lost,
        )
        return client


def _model(ready: channel.Ready) -> channel.Ready:
    """What must not change from one engine to the next: all but how much memory was free."""
    return msgspec.structs.replace(ready, num_pages=0)
