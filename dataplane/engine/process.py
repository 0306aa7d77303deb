"""The engine process: `python -m dataplane.engine.process IPC_ADDRESS PARENT_PID`.

Started by the frontend, ends with it. The step loop is this process's main thread; adapters load on
a thread of their own and wake it through a pipe.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time

import zmq
from msgspec import structs

from dataplane.channel import (
    ALIVE_INTERVAL_S,
    HIGH_WATER_MARK,
    Abort,
    Alive,
    AskLoads,
    Failed,
    Hello,
    Inspect,
    LoadsReport,
    Outputs,
    Ping,
    Prefetch,
    Shutdown,
    Start,
    StartFailed,
    Stats,
    Submit,
    Taught,
    Unload,
    Unpin,
    Vocabulary,
    decode_to_engine,
    encode,
)
from dataplane.engine import process_settings
from dataplane.engine.engine import Engine
from dataplane.engine.parent import die_with
from dataplane.engine.setup import EngineParts, build_engine
from dataplane.engine.step_result import StepResult
from dataplane.engine_options import EngineOptions
from dataplane.error_codes import code_of
from dataplane.lora.loader import ThreadedLoader

log = logging.getLogger(__name__)

_SEND_TIMEOUT_MS = 30_000  # a frontend that takes nothing for so long is gone
_IDLE_POLL_MS = 1_000
_SPARE_POLL_MS = 2  # how late a device may be noticed that was done before it was expected
_SHORT_S = 0.001  # what a poll cannot wait for
_STATS_INTERVAL_S = 0.1


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    die_with(int(sys.argv[2]))
    process_settings.settle()
    # The frontend tells the engine when to stop; a terminal's Ctrl-C reaches both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(HIGH_WATER_MARK)
    socket.setsockopt(zmq.SNDTIMEO, _SEND_TIMEOUT_MS)
    socket.setsockopt(zmq.LINGER, 1_000)
    socket.connect(sys.argv[1])
    try:
        return _Process(socket).run()
    finally:
        socket.close()
        context.term()


class _Process:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._loader: ThreadedLoader | None = None
        self._running = True
        self._stats: Stats | None = None
        self._stats_due_s = 0.0
        self._sent_s = 0.0

    def run(self) -> int:
        self._send(Hello(os.getpid()))
        message = decode_to_engine(self._socket.recv())
        if isinstance(message, Shutdown):
            return 0
        assert isinstance(message, Start), message
        parts = self._start(message.options)
        if parts is None:
            return 2
        try:
            self._loader = parts.loader
            self._serve(parts.engine)
        except BaseException:
            if parts.ranks is not None:  # or what was launched would wait for them
                parts.ranks.kill()
            raise
        finally:
            parts.close()
        return 0

    def _start(self, options: EngineOptions) -> EngineParts | None:
        try:
            parts = build_engine(options, self._wake, on_rank_lost=_end)
            parts.loader.start()
        except Exception as error:
            reason = getattr(error, "reason", "START_FAILED")
            if reason == "START_FAILED":
                log.exception("the engine cannot start")
            metadata = getattr(error, "metadata", {})
            self._send(StartFailed(reason, str(error), metadata))
            return None
        # What is here now stays: a full collection over it would hold up a step for about 90 ms.
        gc.collect()
        gc.freeze()
        self._send(parts.ready)
        return parts

    def _serve(self, engine: Engine) -> None:
        while True:
            busy = (engine.has_work and not engine.is_waiting_for_loads) or engine.is_copying
            # Who comes while the device is busy can still be part of the next step.
            spare_ms = min(int(engine.spare_s * 1000), _SPARE_POLL_MS)
            self._receive(engine, spare_ms if busy else self._idle_timeout_ms(engine))
            if not self._running:
                return
            wanted = engine.has_work or engine.is_bringing_adapters
            if wanted and engine.spare_s < _SHORT_S:
                self._deliver(engine.step())
            self._report(engine)
            if engine.has_work and time.monotonic() - self._sent_s >= ALIVE_INTERVAL_S:
                self._send(Alive())

    def _idle_timeout_ms(self, engine: Engine) -> int:
        """Until the next report or the end of a request's time, whichever is first."""
        due_s = [each for each in (self._stats_due_s, engine.next_due_s) if each]
        if not due_s:
            return _IDLE_POLL_MS
        return min(max(1, int((min(due_s) - time.monotonic()) * 1000)), _IDLE_POLL_MS)

    def _receive(self, engine: Engine, timeout_ms: int) -> None:
        events = dict(self._poller.poll(timeout_ms))
        if self._wake_read in events:
            os.read(self._wake_read, 4096)
        if self._socket not in events:
            return
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            match decode_to_engine(data):
                case Submit() as request:
                    engine.submit(request)
                case Vocabulary() as vocabulary:
                    engine.use_vocabulary(vocabulary)
                    self._send(Taught())
                case Abort(handle):
                    engine.abort(handle)
                case Inspect(ticket):
                    self._send(engine.inspect(ticket))
                case Prefetch() | Unpin() | Unload() as directive:
                    engine.direct(directive)
                case Ping():
                    self._send(Alive())
                case AskLoads(ticket):
                    self._send(self._loads(ticket, engine))
                case Shutdown():
                    self._running = False
                case Start():
                    raise AssertionError("started twice")

    def _loads(self, ticket: int, engine: Engine) -> LoadsReport:
        assert self._loader is not None
        loads = [
            structs.replace(each, copy_s=engine.copy_s(each.digest))
            for each in self._loader.recent_loads()
        ]
        return LoadsReport(ticket=ticket, loads=loads)

    def _stats_of(self, engine: Engine) -> Stats:
        stats = engine.stats()
        if self._loader is None:
            return stats
        below = self._loader.report()
        return structs.replace(
            stats,
            tiers=[*stats.tiers, *below.tiers],
            loads=below.loads,
            loading=below.loading,
            num_loading=below.num_loading,
        )

    def _deliver(self, result: StepResult) -> None:
        if result.outputs:
            self._send(Outputs(result.outputs))
        for handle, error in result.failures:
            self._send(_failed(handle, error))

    def _report(self, engine: Engine) -> None:
        """Sends Stats when they have changed, at most every _STATS_INTERVAL_S."""
        now_s = time.monotonic()
        if now_s < self._stats_due_s:
            return
        stats = self._stats_of(engine)
        if stats != self._stats:
            self._stats = stats
            self._send(stats)
            self._stats_due_s = now_s + _STATS_INTERVAL_S
        else:
            self._stats_due_s = 0.0

    def _send(self, message: object) -> None:
        self._sent_s = time.monotonic()
        self._socket.send(encode(message))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_write, b"\0")


def _end(why: str) -> None:
    """Steps wait for the lost rank and never end: the frontend starts all ranks anew."""
    log.error("the engine ends: %s", why)
    os._exit(1)


def _failed(handle: int, error: Exception) -> Failed:
    code = code_of(error)
    if code == "INTERNAL":
        log.error("request failed", exc_info=error)
        return Failed(
            handle=handle,
            code=code,
            reason="INTERNAL",
            message="internal fault of the engine; the data plane's log has the details",
        )
    return Failed(
        handle=handle,
        code=code,
        reason=getattr(error, "reason", code),
        message=str(error),
        metadata=dict(getattr(error, "metadata", {})),
        retry_after_s=getattr(error, "retry_after_s", 1.0 if code == "UNAVAILABLE" else None),
    )


if __name__ == "__main__":
    sys.exit(main())
