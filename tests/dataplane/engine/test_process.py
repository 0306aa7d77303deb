"""The loop of the engine process, around an engine that does nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import zmq

from dataplane import channel
from dataplane.engine import process
from dataplane.engine.engine import Engine
from dataplane.engine.step_result import StepResult
from tests.helpers.waiting import PATIENCE_S, until

STATS = channel.Stats(
    num_running=0,
    num_waiting=1,
    num_pages=4,
    num_available_pages=4,
    num_used_pages=0,
    num_generated_tokens=0,
    pool_digests=[],
    host_digests=[],
    disk_digests=[],
)

SUBMIT = channel.encode(
    channel.Submit(handle=1, prompt=[1], sampling=channel.Sampling(max_tokens=1), arrival_s=0.0)
)


class WaitingEngine:
    """Has a request whose adapter never arrives, once one was submitted."""

    has_work = False
    is_waiting_for_loads = True
    is_copying = False
    is_bringing_adapters = False
    next_due_s = None
    spare_s = 0.0

    def __init__(self) -> None:
        self.directed: list[channel.Directive] = []
        self.num_steps = 0

    def submit(self, request: channel.Submit) -> None:
        self.has_work = True

    def use_vocabulary(self, vocabulary: channel.Vocabulary) -> None:
        self.vocabulary = vocabulary

    def direct(self, directive: channel.Directive) -> None:
        self.directed.append(directive)
        self.is_bringing_adapters = isinstance(directive, channel.Prefetch)

    def step(self) -> StepResult:
        self.num_steps += 1
        return StepResult()

    def stats(self) -> channel.Stats:
        return STATS


class BusyEngine(WaitingEngine):
    """Its device has work; while `spare_s` is not over no step is wanted."""

    is_waiting_for_loads = False

    def __init__(self) -> None:
        self.num_submitted = 0
        self.taken: list[int] = []  # submitted before each step

    def submit(self, request: channel.Submit) -> None:
        super().submit(request)
        self.num_submitted += 1

    def step(self) -> StepResult:
        self.taken.append(self.num_submitted)
        self.spare_s = 1000.0
        return StepResult()


@contextmanager
def looping(engine: WaitingEngine) -> Generator[zmq.Socket[bytes]]:
    """The frontend's end of the channel to the loop, which runs in a thread."""
    context: zmq.Context[Any] = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://engine")
    theirs.connect("inproc://engine")
    loop = process._Process(theirs)
    thread = threading.Thread(target=loop._serve, args=(cast("Engine", engine),))
    thread.start()
    try:
        yield ours
    finally:
        ours.send(channel.encode(channel.Shutdown()))
        thread.join(60)
        for socket in (ours, theirs):
            socket.close()
        context.term()
        assert not thread.is_alive()


def hear(socket: zmq.Socket[bytes], wanted: channel.FromEngine, number: int = 1) -> None:
    """Until that has come so often."""
    while number:
        assert socket.poll(int(PATIENCE_S * 1000)), f"{wanted} did not come"
        number -= channel.decode_from_engine(socket.recv()) == wanted


def heard(socket: zmq.Socket[bytes], for_s: float) -> list[channel.FromEngine]:
    """Everything that comes within that time."""
    messages: list[channel.FromEngine] = []
    end_s = time.monotonic() + for_s
    while (left_s := end_s - time.monotonic()) > 0:
        if socket.poll(int(left_s * 1000)):
            messages.append(channel.decode_from_engine(socket.recv()))
    return messages


def test_says_alive_while_it_waits_with_work_and_nothing_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "ALIVE_INTERVAL_S", 0.05)
    monkeypatch.setattr(process, "_IDLE_POLL_MS", 10)
    with looping(WaitingEngine()) as socket:
        # Stats may come and repeat: they are sent when they change.
        assert channel.Alive() not in heard(socket, 0.3)
        socket.send(SUBMIT)
        hear(socket, channel.Alive(), 3)


def test_says_alive_when_asked() -> None:
    with looping(WaitingEngine()) as socket:
        for _ in range(2):
            socket.send(channel.encode(channel.Ping()))
        hear(socket, channel.Alive(), 2)
        assert channel.Alive() not in heard(socket, 0.1)


def test_who_comes_while_the_device_is_busy_is_in_the_next_step() -> None:
    engine = BusyEngine()
    with looping(engine) as socket:
        socket.send(SUBMIT)
        until(lambda: engine.taken == [1])
        for _ in range(3):
            socket.send(SUBMIT)
        until(lambda: engine.num_submitted == 4)
        assert engine.taken == [1]
        engine.spare_s = 0.0
        until(lambda: engine.taken == [1, 4])


def test_directives_reach_the_engine_which_steps_for_them_without_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_IDLE_POLL_MS", 10)
    engine = WaitingEngine()
    prefetch = channel.Prefetch(channel.Adapter("d" * 64, "/a", "a@1"), "pool", pin=True)
    others: list[channel.Directive] = [channel.Unpin("d" * 64), channel.Unload("d" * 64, 1.5)]
    with looping(engine) as socket:
        heard(socket, 0.1)
        assert engine.num_steps == 0
        socket.send(channel.encode(prefetch))
        until(lambda: engine.directed == [prefetch] and engine.num_steps > 0)
        for directive in others:
            socket.send(channel.encode(directive))
        until(lambda: engine.directed == [prefetch, *others] and not engine.is_bringing_adapters)
        steps = engine.num_steps
        heard(socket, 0.1)
        assert engine.directed == [prefetch, *others] and engine.num_steps == steps


def test_a_vocabulary_is_answered_once_it_was_read() -> None:
    vocabulary = channel.Vocabulary(tokenizer=b"{}", num_tokens=1, vocab_size=1, eos_token_ids=[])
    engine = WaitingEngine()
    with looping(engine) as socket:
        socket.send(channel.encode(vocabulary))
        hear(socket, channel.Taught())
        assert channel.Taught() not in heard(socket, 0.1)
        assert engine.vocabulary == vocabulary
