"""Turns at Redis."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from controlplane.errors import StoreBusyError, StoreUnavailableError
from controlplane.store.client import Store
from controlplane.store.slots import Slots


async def test_turns_come_in_order_and_never_too_many_at_once() -> None:
    slots = Slots(3, patience_s=600.0, max_waiting=100)
    began: list[int] = []
    running = most = 0

    async def call(number: int) -> None:
        nonlocal running, most
        async with slots.turn():
            began.append(number)
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(call(number) for number in range(40)))
    assert began == list(range(40)) and most == 3


async def test_a_burst_is_worked_off_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, now_s = asyncio.get_running_loop(), 0.0
    monkeypatch.setattr(loop, "time", lambda: now_s)
    slots = Slots(1, patience_s=1.0, max_waiting=100)
    ends = [asyncio.Event() for _ in range(30)]

    async def call(end: asyncio.Event) -> None:
        async with slots.turn():
            await end.wait()

    calls = [asyncio.create_task(call(end)) for end in ends]
    for end in ends:
        now_s += 0.9
        end.set()
        for _ in range(20):  # what is due on the loop's clock is done
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert now_s > 20, "many times the patience"


async def test_when_nothing_is_answered_those_who_wait_are_told() -> None:
    slots = Slots(1, patience_s=0.05, max_waiting=100)
    release = asyncio.Event()

    async def hang() -> None:
        async with slots.turn():
            await release.wait()
            raise OSError

    hanging = asyncio.create_task(hang())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match=r"no answer for 0\.05 s"):
        async with slots.turn():
            pytest.fail("had a turn")
    release.set()
    with suppress(OSError):
        await hanging
    async with slots.turn():
        pass


async def test_more_than_may_wait_are_refused_at_once() -> None:
    slots = Slots(1, patience_s=600.0, max_waiting=2)
    release = asyncio.Event()

    async def call() -> None:
        async with slots.turn():
            await release.wait()

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusyError) as refused:
        async with slots.turn():
            pytest.fail("had a turn")
    assert refused.value.retry_after_s
    release.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_cancelled_wait_gives_its_turn_on(at_once: bool) -> None:
    slots = Slots(1, patience_s=600.0, max_waiting=10)
    release = asyncio.Event()
    ended: list[str] = []

    async def call(name: str, waits: bool = False) -> None:
        async with slots.turn():
            if waits:
                await release.wait()
            ended.append(name)

    first = asyncio.create_task(call("first", waits=True))
    second, third = (asyncio.create_task(call(name)) for name in ("second", "third"))
    await asyncio.sleep(0.01)
    if at_once:
        release.set()
        while not first.done():
            await asyncio.sleep(0)
        second.cancel()  # has its turn, and has not run yet
    else:
        second.cancel()
        release.set()
    await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 30)
    assert ended in (["first", "third"], ["first", "second", "third"])
    async with asyncio.timeout(30), slots.turn():
        pass


async def test_thousands_of_calls_at_once_are_answered(redis_url: str) -> None:
    store = Store(redis_url, timeout_s=60.0, max_connections=2)
    try:
        replies = await asyncio.gather(*(store.run("data_planes", 0, 0) for _ in range(3000)))
    finally:
        await store.close()
    assert replies == [["OK", []]] * 3000
