"""The frontend's socket: nothing is lost or left lying, whoever is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zmq

from dataplane import channel
from dataplane.rpc.engine_socket import EngineSocket
from tests.helpers.fake_control_plane import eventually


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path / 's'}"


@pytest.fixture
def peer(address: str) -> Iterator[Any]:
    """The engine's end."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(100_000)
        socket.connect(address)
        yield socket


async def test_waits_for_an_engine_that_connects_late(address: str) -> None:
    with closing(EngineSocket(address, lambda _: None)) as socket:
        for handle in range(5):
            socket.send(channel.Abort(handle))
        await asyncio.sleep(0.05)
        assert socket.num_waiting == 5
        with zmq.Context() as context, context.socket(zmq.PAIR) as late:
            late.connect(address)
            await eventually(lambda: socket.num_waiting == 0)
            got = [channel.decode_to_engine(await asyncio.to_thread(late.recv)) for _ in range(5)]
    assert got == [channel.Abort(handle) for handle in range(5)]


async def test_news_that_come_while_it_sends_are_taken(address: str, peer: Any) -> None:
    rounds, done = 300, asyncio.Event()

    def answer(data: bytes) -> None:
        number = int(data)
        if number == rounds:
            done.set()
        else:
            socket.send(channel.Abort(number + 1))

    def echo() -> None:
        while (message := channel.decode_to_engine(peer.recv())) and isinstance(
            message, channel.Abort
        ):
            peer.send(str(message.handle).encode())
            if message.handle == rounds:
                return

    with closing(EngineSocket(address, answer)) as socket:
        echoing = asyncio.create_task(asyncio.to_thread(echo))
        socket.send(channel.Abort(1))
        await asyncio.wait_for(done.wait(), 60)
        await echoing


async def test_a_flood_comes_whole_and_lets_others_run(address: str, peer: Any) -> None:
    number, taken, seen_between = 5000, list[bytes](), set[int]()
    with closing(EngineSocket(address, taken.append)):
        peer.send(b"first")
        await eventually(lambda: len(taken) == 1)
        for i in range(number):
            peer.send(b"%d" % i)
        while len(taken) <= number:
            await asyncio.sleep(0)
            seen_between.add(len(taken))
    assert taken[1:] == [b"%d" % i for i in range(number)]
    assert len(seen_between) > number / 200, "the loop was not held up by all of it at once"


async def test_closing_while_a_message_is_taken(address: str, peer: Any) -> None:
    taken: list[bytes] = []

    def close(data: bytes) -> None:
        taken.append(data)
        socket.close()

    socket = EngineSocket(address, close)
    for _ in range(3):
        peer.send(b"x")
    await eventually(lambda: bool(taken))
    await asyncio.sleep(0.02)
    assert taken == [b"x"]
    socket.send(channel.Abort(1))  # no error: it goes nowhere
    socket.close()


async def test_sends_go_on_when_the_engine_makes_room(address: str) -> None:
    number = 3 * channel.HIGH_WATER_MARK
    with (
        closing(EngineSocket(address, lambda _: None)) as socket,
        zmq.Context() as context,
        context.socket(zmq.PAIR) as stuck,
    ):
        stuck.set_hwm(channel.HIGH_WATER_MARK)
        stuck.connect(address)
        for handle in range(number):
            socket.send(channel.Abort(handle))
        await asyncio.sleep(0.1)
        assert socket.num_waiting > 0, "the engine takes nothing"

        def take_all() -> list[channel.ToEngine]:
            return [channel.decode_to_engine(stuck.recv()) for _ in range(number)]

        got = await asyncio.wait_for(asyncio.to_thread(take_all), 60)
        assert got == [channel.Abort(handle) for handle in range(number)]
