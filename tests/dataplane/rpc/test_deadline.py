"""Who waits so long is answered before."""

from __future__ import annotations

import asyncio

import pytest

from chorale.errors import DeadlineExceededError
from dataplane.rpc.deadline import deadline_of, within
from tests.helpers.leaps import leap


def test_an_answer_is_due_shortly_before_the_caller_goes() -> None:
    assert deadline_of(None, 100.0) is None
    assert deadline_of(10.0, 100.0) == pytest.approx(109.95)
    assert deadline_of(0.1, 100.0) == pytest.approx(100.09), "a tenth, where that is less"


async def test_what_takes_longer_is_ended_typed() -> None:
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceededError):
        async with within(now_s + 1000.0):
            await asyncio.sleep(0)
            leap(1000.0)
            await asyncio.Event().wait()
    async with within(None):
        leap(1000.0)
        await asyncio.sleep(0)
