from __future__ import annotations

import asyncio

import pytest

from storage.errors import SourceUnavailableError
from storage.sources.places import Places


async def held(places: Places, until: asyncio.Event) -> str:
    async with places.hold() as place:
        await place.wait_for(until.wait())
    return "done"


async def test_nobody_makes_way_for_nobody() -> None:
    places, end = Places(1, 0, patience_s=0.005), asyncio.Event()
    alone = asyncio.create_task(held(places, end))
    await asyncio.sleep(0.05)
    assert not alone.done()
    other = asyncio.create_task(held(places, end))
    with pytest.raises(SourceUnavailableError, match="while others waited"):
        await asyncio.wait_for(alone, 10)
    end.set()
    assert await asyncio.wait_for(other, 10) == "done"


async def test_who_goes_on_slowly_gives_back_that_place() -> None:
    places, end = Places(1, 1, patience_s=0.005), asyncio.Event()
    for _ in range(3):
        slow = asyncio.create_task(held(places, end))
        await asyncio.sleep(0)
        done = asyncio.Event()
        done.set()
        assert await asyncio.wait_for(held(places, done), 10) == "done"
        assert places.slow.locked() and not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert not places.slow.locked()
        async with places.hold():
            assert places.quick.locked(), "there is one quick place, as before"
    assert places.num_wanted == 0
