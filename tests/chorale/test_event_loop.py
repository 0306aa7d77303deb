"""Which event loop servers run on."""

from __future__ import annotations

import asyncio
import sys

import pytest

from chorale import event_loop


async def name_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_uvloop_where_it_is_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert event_loop.run(name_of_loop()) == uvloop.Loop.__module__


def test_asyncio_s_own_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop.run(name_of_loop()).startswith("asyncio.")


def test_what_the_work_raises_comes_out() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        event_loop.run(fail())


def test_as_many_open_files_as_the_system_allows() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)

    async def limit() -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert event_loop.run(limit()) == allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
