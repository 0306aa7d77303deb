"""Keeps a process that tries constraints out (`trial`), and starts another when one is lost."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time

import msgspec

from dataplane.channel import Vocabulary
from dataplane.constraints.limits import TRIAL_BYTES, TRIAL_CPU_S, TRIAL_WALL_S
from dataplane.constraints.verdict import Verdict, read_frame, write_frame

_SAFE_PATH = ("-P",) if sys.flags.safe_path else ()
_COMMAND = (sys.executable, *_SAFE_PATH, "-m", "dataplane.constraints.trial")
_START_S = 60.0
_LOST = Verdict(
    "CONSTRAINT_TOO_COMPLEX",
    f"compiling it took more than {TRIAL_CPU_S} s, {TRIAL_BYTES >> 20} MiB, or the whole stack;"
    " make it simpler",
)
_GONE = Verdict("CONSTRAINT_TRIAL_LOST", "the process that tries constraints ended")


class Trials:
    """A process lives no longer than the thread that it was started on: one thread calls `check`,
    which blocks. Any may call `close`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._busy = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unusable: Verdict | None = None
        self._is_closed = False

    def check(self, grammar: str) -> Verdict:
        """Whether it can be compiled and followed. Raises: OSError when nothing can be started."""
        with self._busy:
            if self._is_closed:
                return _GONE
            if self._process is None:
                verdict = self._start()
                if verdict.reason:
                    return verdict
            return self._ask(grammar.encode(), TRIAL_WALL_S) or (
                _GONE if self._is_closed else _LOST
            )

    def close(self) -> None:
        """Ends the process, if there is one, and the trial that it makes."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._busy:
            self._let_go()

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def _start(self) -> Verdict:
        if self._unusable is not None:
            return self._unusable
        self._process = subprocess.Popen(
            [*_COMMAND, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # an abort's last words have the grammar in them
            bufsize=0,
        )
        if self._is_closed:
            self._let_go()
            return _GONE
        verdict = self._ask(msgspec.msgpack.encode(self._vocabulary), _START_S)
        if verdict is None:
            return _GONE
        if verdict.reason:
            self._unusable = verdict
            self._let_go()
        return verdict

    def _ask(self, data: bytes, within_s: float) -> Verdict | None:
        """None, and no process, when it was lost."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            until_s = time.monotonic() + within_s
            write_frame(process.stdin, data)  # pyright: ignore[reportArgumentType]
            answer = b""
            readable, _, _ = select.select([process.stdout], [], [], until_s - time.monotonic())
            if readable:
                answer = read_frame(process.stdout)  # pyright: ignore[reportArgumentType]
            if answer:
                return msgspec.msgpack.decode(answer, type=Verdict)
        except BrokenPipeError:
            pass
        self._let_go()
        return None
