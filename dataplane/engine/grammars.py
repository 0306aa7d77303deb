"""Compiling the grammars of requests, beside the step loop.

Whoever waits for its grammar waits here, before the scheduler's queues, and nobody waits with it.
The frontend has tried every grammar out before (`dataplane.constraints.trial`), so none takes long.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dataplane.channel import Vocabulary
from dataplane.engine.sequence import Sequence
from dataplane.errors import ConstraintsUnsupportedError, DataPlaneError

if TYPE_CHECKING:
    from dataplane.constraints.matcher import GrammarTokens, Matcher

_MAX_COMPILED = 64  # kept for requests to come
_STACK_BYTES = 32 << 20
_STOP_S = 2.0


class Ready(NamedTuple):
    """A sequence that has its matcher, or an error."""

    sequence: Sequence
    error: Exception | None


class _Wanted(NamedTuple):
    sequence: Sequence
    generated: list[int]


class _Made(NamedTuple):
    sequence: Sequence
    matcher: Matcher | None
    error: Exception | None


class Grammars:
    """One thread makes every call but `on_ready`, which is called from the compiling thread. That
    is started by the first grammar."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._tokens: GrammarTokens | Exception = ConstraintsUnsupportedError(
            "CONSTRAINTS_UNSUPPORTED", "the engine was told no vocabulary"
        )
        self._waiting: dict[int, Sequence] = {}
        self._wanted: queue.SimpleQueue[_Wanted | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[_Made] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._compiled: OrderedDict[bytes, Matcher] = OrderedDict()  # the thread's
        self.num_compiled = 0
        self.compile_s = 0.0

    def __len__(self) -> int:
        """Who waits."""
        return len(self._waiting)

    def use(self, vocabulary: Vocabulary) -> None:
        """Before the first `add`. Reads it here and now, as no other thread could run meanwhile
        anyway: the place for that is where nobody waits yet."""
        try:
            self._tokens = _tokens_of(vocabulary)
        except DataPlaneError as error:
            self._tokens = error

    def add(self, sequence: Sequence) -> None:
        """Has the matcher of a sequence made, as far as its output has come."""
        if self._thread is None:
            self._thread = self._start()
        self._waiting[sequence.handle] = sequence
        self._wanted.put(_Wanted(sequence, sequence.tokens[sequence.num_prompt :]))

    def remove(self, handle: int) -> bool:
        """Whether it waited."""
        return self._waiting.pop(handle, None) is not None

    def poll(self) -> list[Ready]:
        """Those whose wait has ended, once each."""
        ready: list[Ready] = []
        while not self._made.empty():
            made = self._made.get()
            if self.remove(made.sequence.handle):
                made.sequence.matcher = made.matcher
                ready.append(Ready(made.sequence, made.error))
        return ready

    def stop(self) -> None:
        """Ends the thread after what it does, which is waited for a while."""
        if self._thread is not None:
            self._wanted.put(None)
            self._thread.join(_STOP_S)

    def _start(self) -> threading.Thread:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
        return thread

    # On the thread.

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if wanted.sequence.handle not in self._waiting:
                continue  # aborted meanwhile
            self._made.put(self._make(wanted, self._tokens))
            self._on_ready()

    def _make(self, wanted: _Wanted, tokens: GrammarTokens | Exception) -> _Made:
        if isinstance(tokens, Exception):
            return _Made(wanted.sequence, None, tokens)
        try:
            matcher = self._matcher(wanted.sequence.sampling.grammar, tokens)
            if wanted.generated:
                matcher.push(wanted.generated)
        except Exception as error:
            return _Made(wanted.sequence, None, error)
        return _Made(wanted.sequence, matcher, None)

    def _matcher(self, grammar: str, tokens: GrammarTokens) -> Matcher:
        digest = hashlib.sha256(grammar.encode()).digest()
        compiled = self._compiled.get(digest)
        if compiled is None:
            began_s = time.monotonic()
            compiled = self._compiled[digest] = tokens.matcher(grammar)
            self.num_compiled += 1
            self.compile_s += time.monotonic() - began_s
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(digest)
        return compiled.copy()


def _tokens_of(vocabulary: Vocabulary) -> GrammarTokens:
    from dataplane.constraints.matcher import GrammarTokens  # who is told none spares the import

    return GrammarTokens(vocabulary)
