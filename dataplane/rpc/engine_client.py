"""The frontend's end of the channel to the engine process (dataplane/channel.py)."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import msgspec

from chorale.errors import BY_CODE, ChoraleError, InternalError, UnavailableError
from dataplane import channel
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.rpc.engine_process import EngineProcess
from dataplane.rpc.engine_socket import EngineSocket
from dataplane.rpc.engine_stream import EngineStream

log = logging.getLogger(__name__)

_SHUTDOWN_GRACE_S = 2.0
_LAST_WORDS_S = 0.5
_HANG_TICKS = 8


class EngineClient:
    """Starts the engine, submits requests to it and hands each its output.

    process: of the engine; started by `start` unless it runs already.
    hang_timeout_s: an engine that says nothing for so long, asked or with work, is lost, and is
    killed; 0: never.
    on_lost: called once, in the event loop, when the engine is gone without having been stopped.
    By then every open stream has ended with UnavailableError (ENGINE_LOST).
    Belongs to one event loop. `start` before anything else, `stop` at the end.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        process: EngineProcess | None = None,
        hang_timeout_s: float = 0.0,
        on_lost: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.stats: channel.Stats | None = None
        self._options = options
        self._on_lost = on_lost
        self._process = process or EngineProcess()
        self._hang_timeout_s = hang_timeout_s
        self._heard = False  # since the last look
        self._socket: EngineSocket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: asyncio.Future[channel.Ready] | None = None
        self._streams: dict[int, EngineStream] = {}
        self._handles = itertools.count(1)
        self._reports: dict[int, asyncio.Future[Any]] = {}
        self._gone: ChoraleError | None = None
        self._stopping = False
        self._taught: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Binds the channel and starts the process; it loads while the caller goes on.

        Raises: OSError when the engine's command cannot be run.
        """
        self._ready = asyncio.get_running_loop().create_future()
        self._socket = EngineSocket(self._process.address, self._take)
        if not self._process.is_started:
            self._process.start()
        self._tasks = [
            asyncio.create_task(self._watch(self._process), name="engine-watch"),
        ]
        if self._hang_timeout_s:
            self._tasks.append(asyncio.create_task(self._find_hang(), name="engine-find-hang"))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_lost(self) -> bool:
        """True once `on_lost` was called."""
        return self._gone is not None and not self._stopping

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    async def wait_ready(self) -> channel.Ready:
        """What the engine announces once it serves.

        Raises: DataPlaneError with the engine's own reason when it cannot serve this model,
        UnavailableError (ENGINE_LOST) when it died on the way.
        """
        assert self._ready is not None, "start() comes first"
        return await asyncio.shield(self._ready)

    def submit(
        self,
        *,
        prompt: list[int],
        sampling: channel.Sampling,
        arrival_s: float,
        generated: Sequence[int] = (),
        adapter: channel.Adapter | None = None,
        active_from: int = 0,
        tenant: str = "default",
        deadline_s: float | None = None,
        first_token_by_s: float | None = None,
        priority: int = 0,
        cache_scope: str = "",
    ) -> EngineStream:
        """Queues a request (fields as in channel.Submit); close the stream to abort it.

        Raises: UnavailableError when the engine is gone or does not take messages.
        """
        self.check()
        if self._socket is None or self._socket.num_waiting >= channel.HIGH_WATER_MARK:
            raise UnavailableError(
                "ENGINE_BUSY",
                "the engine has more messages than it has read yet: try again, or elsewhere",
                retry_after_s=1.0,
            )
        stream = EngineStream(next(self._handles), self._abort)
        self._streams[stream.handle] = stream
        self._post(
            channel.Submit(
                handle=stream.handle,
                prompt=prompt,
                generated=list(generated),
                sampling=sampling,
                adapter=adapter,
                active_from=active_from,
                tenant=tenant,
                arrival_s=arrival_s,
                deadline_s=deadline_s,
                first_token_by_s=first_token_by_s,
                priority=priority,
                cache_scope=cache_scope,
            )
        )
        return stream

    async def teach(self, vocabulary: channel.Vocabulary) -> None:
        """Comes once, before the first `submit`, and waits until the engine has read it.

        Raises: UnavailableError when the engine is gone.
        """
        self.check()
        assert self._taught is None, "it is told once"
        self._taught = asyncio.get_running_loop().create_future()
        self._post(vocabulary)
        await self._taught

    def check(self) -> None:
        """Raises: UnavailableError when the engine is gone."""
        if self._gone is not None:
            raise self._gone

    def direct(self, directive: channel.Directive) -> None:
        """Passes on what is to be done about an adapter; nothing when the engine is gone, as the
        next one is told anew of all that lasts."""
        if self._gone is None:
            self._post(directive)

    async def inspect(self) -> channel.PoolReport:
        """Who owns each page of the pool at the moment."""
        return await self._ask(channel.Inspect)

    async def recent_loads(self) -> channel.LoadsReport:
        """What the engine loaded into host memory lately."""
        return await self._ask(channel.AskLoads)

    async def _ask(self, question: type[channel.Inspect | channel.AskLoads]) -> Any:
        self.check()
        ticket = next(self._handles)
        report = self._reports[ticket] = asyncio.get_running_loop().create_future()
        self._post(question(ticket))
        try:
            return await report
        finally:
            self._reports.pop(ticket, None)

    def end_all(self, error: ChoraleError) -> None:
        """Ends every open stream with `error` and aborts it in the engine."""
        for stream in list(self._streams.values()):
            stream.fail(error)
            self._abort(stream)

    async def stop(self) -> None:
        """Shuts the engine down: asked, then terminated, then killed. Idempotent."""
        self._stopping = True
        stopped = UnavailableError(
            "SHUTTING_DOWN", "the data plane is going away; continue elsewhere", retry_after_s=1
        )
        self._close(stopped)
        self._post(channel.Shutdown())
        await self._process.stop(_SHUTDOWN_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._socket is not None:
            self._socket.close()

    def _abort(self, stream: EngineStream) -> None:
        if self._streams.pop(stream.handle, None) is not None and self._gone is None:
            self._post(channel.Abort(stream.handle))

    def _post(self, message: channel.ToEngine) -> None:
        if self._socket is not None:
            self._socket.send(message)

    def _take(self, data: bytes) -> None:
        self._heard = True
        try:
            message = channel.decode_from_engine(data)
        except msgspec.DecodeError as error:
            self._lose(f"the engine sent a message that cannot be read: {error}")
            return
        self._handle(message)

    def _handle(self, message: channel.FromEngine) -> None:
        assert self._ready is not None
        match message:
            case channel.Outputs(outputs=outputs):
                for output in outputs:
                    self._deliver(output)
            case channel.Failed(handle=handle):
                stream = self._streams.pop(handle, None)
                if stream is not None:
                    stream.fail(_error_of(message))
            case channel.Stats():
                self.stats = message
            case channel.Alive():
                pass  # having been heard is all it says
            case channel.PoolReport(ticket=ticket) | channel.LoadsReport(ticket=ticket):
                report = self._reports.get(ticket)
                if report is not None and not report.done():
                    report.set_result(message)
            case channel.Hello():
                self._post(channel.Start(self._options))
            case channel.Ready() if not self._ready.done():
                self._ready.set_result(message)
            case channel.Taught() if self._taught is not None:
                if not self._taught.done():
                    self._taught.set_result(None)
            case channel.StartFailed() if not self._ready.done():
                self._ready.set_exception(
                    DataPlaneError(message.reason, message.message, message.metadata)
                )
                self._ready.exception()
            case _:
                log.error("the engine sent %s out of order", type(message).__name__)

    def _deliver(self, output: channel.Output) -> None:
        stream = self._streams.get(output.handle)
        if stream is None:
            return  # aborted: the Abort and this output crossed
        stream.add(output)
        if output.finish:
            del self._streams[output.handle]

    async def _watch(self, process: EngineProcess) -> None:
        status = await process.wait()
        assert self._ready is not None
        if not self._ready.done():  # why it failed may be in the socket still
            await asyncio.wait((self._ready,), timeout=_LAST_WORDS_S)
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        self._lose(f"the engine process {how}")

    async def _find_hang(self) -> None:
        # Ticks are counted, not time: when it is this process that was frozen, no more than one of
        # them is missed.
        await self.wait_ready()  # loading takes as long as it takes, as reading a vocabulary does
        silent_ticks = 0
        while silent_ticks < _HANG_TICKS:
            if not silent_ticks:  # one without work would be right to say nothing
                self._post(channel.Ping())
            self._heard = False
            await asyncio.sleep(self._hang_timeout_s / _HANG_TICKS)
            is_reading = self._taught is not None and not self._taught.done()
            silent_ticks = 0 if self._heard or is_reading else silent_ticks + 1
        self._lose(f"the engine has said nothing for {self._hang_timeout_s:g} s")

    def _lose(self, reason: str) -> None:
        if self._stopping or self._gone is not None:
            return
        log.error("%s", reason)
        self._process.kill()
        self._close(UnavailableError("ENGINE_LOST", reason, retry_after_s=1.0))
        self._on_lost(reason)

    def _close(self, error: ChoraleError) -> None:
        """Ends everything open with `error`, which from now on answers every call."""
        self._gone = self._gone or error
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.fail(error)
        for future in (*self._reports.values(), self._ready, self._taught):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # retrieved: whoever waits sees it, nobody need wait


def _error_of(failed: channel.Failed) -> ChoraleError:
    code = grpc.StatusCode.__members__.get(failed.code)
    error = BY_CODE.get(code, InternalError) if code is not None else InternalError
    return error(
        failed.reason,
        failed.message,
        metadata=failed.metadata,
        retry_after_s=failed.retry_after_s,
    )
