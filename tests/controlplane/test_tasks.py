"""A task that swallows a cancellation is ended all the same."""

import asyncio
import contextlib

from controlplane.tasks import end


async def test_a_task_that_swallows_its_first_cancellation_ends() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await end(task)
    assert task.cancelled() and swallowed == 2


async def test_a_failed_task_is_no_failure_of_the_one_who_ends_it() -> None:
    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    with contextlib.suppress(ValueError):
        await asyncio.wait((task,))
    await end(task)
