"""The process that tries constraints out: `python -m dataplane.constraints.trial PARENT_PID`.

A grammar of a few bytes can make llguidance take gigabytes, hours, or all of the stack. Here that
costs nobody anything: memory and processor time are bounded by the system, and whoever started this
process starts another one when it has gone.

Frames (`verdict`) on stdin and stdout: first the Vocabulary, which is answered like a grammar, then
grammars, each answered by a Verdict.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import threading
import time

import msgspec
import numpy as np

from dataplane.channel import Vocabulary
from dataplane.constraints.limits import (
    TRIAL_BYTES,
    TRIAL_CPU_S,
    TRIAL_FOLLOW_CPU_S,
    TRIAL_STEPS,
)
from dataplane.constraints.matcher import FAILED, GrammarTokens, Matcher
from dataplane.constraints.verdict import Verdict, read_frame, write_frame
from dataplane.engine.parent import die_with
from dataplane.errors import ConstraintError, DataPlaneError

_NICENESS = 10
# Less than any thread has in which the engine follows a grammar.
_STACK_BYTES = 1 << 20


def main() -> int:
    die_with(int(sys.argv[1]))
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers, asked = sys.stdout.buffer, sys.stdin.buffer
    data = read_frame(asked)
    if data is None:
        return 0
    try:
        tokens = GrammarTokens(msgspec.msgpack.decode(data, type=Vocabulary))
    except DataPlaneError as error:
        write_frame(answers, _encoded(Verdict(error.reason, error.message)))
        return 0
    write_frame(answers, _encoded(Verdict()))
    _bound_memory()
    threading.stack_size(_STACK_BYTES)
    while (data := read_frame(asked)) is not None:
        _bound_time()
        verdict = _on_a_thread(tokens, data.decode())
        write_frame(answers, _encoded(verdict))
    return 0


def try_out(tokens: GrammarTokens, grammar: str) -> Verdict:
    """Compiles it and follows some text that it allows."""
    began_s = time.process_time()
    try:
        _walk(tokens.matcher(grammar), tokens)
    except ConstraintError as error:
        said = error.message.removeprefix(FAILED)
        return Verdict(error.reason, said, time.process_time() - began_s)
    return Verdict(cpu_s=time.process_time() - began_s)


def _walk(matcher: Matcher, tokens: GrammarTokens) -> None:
    """Raises: ConstraintError."""
    words = np.zeros(tokens.num_words, dtype=np.int32)
    choose = random.Random(0)
    if matcher.is_complete:
        raise ConstraintError("CONSTRAINT_INVALID", "no text but the empty one is allowed by it")
    end_s = time.thread_time() + TRIAL_FOLLOW_CPU_S
    for _ in range(TRIAL_STEPS):
        matcher.fill(words)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        if not len(allowed):
            raise ConstraintError("CONSTRAINT_INVALID", "no text is allowed by it")
        matcher.push([int(choose.choice(allowed))])
        if time.thread_time() > end_s:
            raise ConstraintError(
                "CONSTRAINT_TOO_COMPLEX",
                f"finding the tokens that may follow took more than {TRIAL_FOLLOW_CPU_S:g} s for"
                f" the first {TRIAL_STEPS}; make the constraint simpler",
            )
        if matcher.is_complete:
            return


def _on_a_thread(tokens: GrammarTokens, grammar: str) -> Verdict:
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(try_out(tokens, grammar)))
    thread.start()
    thread.join()
    return found[0]


def _bound_memory() -> None:
    """Beyond what there is now. What asks for more is aborted."""
    with open("/proc/self/status") as file:
        (now,) = (int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + TRIAL_BYTES, now + TRIAL_BYTES))


def _bound_time() -> None:
    """Whole seconds, of the next grammar. The process is killed then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + TRIAL_CPU_S
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _encoded(verdict: Verdict) -> bytes:
    return msgspec.msgpack.encode(verdict)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        sys.exit(main())
