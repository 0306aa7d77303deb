import asyncio

import pytest

from storage.slots import PrioritySlots


async def _hold(
    slots: PrioritySlots, name: str, priorities: dict[str, float], order: list[str]
) -> None:
    async with slots.at(lambda: priorities[name]):
        order.append(name)
        await asyncio.sleep(0)


async def test_highest_priority_first_then_first_come() -> None:
    slots, order = PrioritySlots(1), list[str]()
    priorities = {"a": 0.0, "b": 0.0, "c": 5.0, "d": 0.0}
    async with asyncio.TaskGroup() as group:
        for name in priorities:
            group.create_task(_hold(slots, name, priorities, order))
    assert order == ["a", "c", "b", "d"]


async def test_a_priority_may_rise_while_waiting() -> None:
    slots, order = PrioritySlots(1), list[str]()
    priorities = {"a": 0.0, "b": 2.0, "c": 1.0}
    async with slots.at(lambda: 0.0):
        tasks = [asyncio.create_task(_hold(slots, name, priorities, order)) for name in priorities]
        await asyncio.sleep(0)
        priorities["a"] = 3.0
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


async def test_no_more_than_count_at_a_time() -> None:
    slots, now, most = PrioritySlots(3), 0, 0

    async def work() -> None:
        nonlocal now, most
        async with slots.at(lambda: 0.0):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert most == 3


@pytest.mark.parametrize("granted", [False, True])
async def test_a_cancelled_waiter_leaves_no_slot_behind(granted: bool) -> None:
    slots = PrioritySlots(1)

    async def wait() -> None:
        async with slots.at(lambda: 0.0):
            pass

    async with slots.at(lambda: 0.0):
        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if not granted:
            waiter.cancel()
    waiter.cancel()  # the slot is on its way to it, if it still waited
    with pytest.raises(asyncio.CancelledError):
        await waiter
    async with asyncio.timeout(30), slots.at(lambda: 0.0):
        pass
