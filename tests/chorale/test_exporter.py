from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, Gauge

from chorale import exporter as module
from chorale.exporter import Exporter
from tests.helpers.prometheus import Metrics
from tests.helpers.waiting import eventually


class Bench:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gauge = Gauge("things", "Of a kind.", registry=self.registry)
        self.broken = False
        self.exporter = Exporter(self.registry, self.refresh)

    async def refresh(self) -> None:
        if self.broken:
            raise OSError("down")
        self.gauge.inc()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.exporter.port}/metrics"


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.exporter.start("127.0.0.1", 0)
    yield bench
    await bench.exporter.stop()


async def test_metrics_are_as_of_the_question(bench: Bench) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        for number in (1, 2):
            answer = await http.get(f"{bench.url}?x=1")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain; version=")
            assert Metrics(answer.text)("things") == number
        openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = await http.get(bench.url, headers=openmetrics)
        assert answer.text.endswith("# EOF\n")
        head = await http.head(bench.url)
        assert head.status_code == 200 and not head.content


async def test_refusals(bench: Bench) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await http.get(bench.url.replace("metrics", "other"))).status_code == 404
        answer = await http.post(bench.url)
        assert answer.status_code == 405 and "GET" in answer.headers["allow"]
        assert (await http.get(bench.url, headers={"x": "y" * 9000})).status_code == 431
        bench.broken = True
        assert (await http.get(bench.url)).status_code == 503
        bench.broken = False
        assert (await http.get(bench.url)).status_code == 200


async def test_silent_and_many_clients_hold_up_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 300.0)
    monkeypatch.setattr(module, "_MAX_CONNECTIONS", 2)
    open_ones = bench.exporter._open
    silent = [await connected(bench) for _ in range(2)]
    await eventually(lambda: len(open_ones) == 2)
    reader, writer = await connected(bench)
    assert await asyncio.wait_for(reader.read(), 30) == b"", "one too many"
    for each in (writer, *(writer for _, writer in silent)):
        each.close()
    await eventually(lambda: not open_ones)
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
    for silent_reader, silent_writer in [await connected(bench) for _ in range(2)]:
        assert await asyncio.wait_for(silent_reader.read(), 30) == b"", "too slow"
        silent_writer.close()
    monkeypatch.setattr(module, "_TIMEOUT_S", 300.0)
    await eventually(lambda: not open_ones)
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await http.get(bench.url)).status_code == 200


async def connected(bench: Bench) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", bench.exporter.port)


async def test_a_taken_port_and_stopping(bench: Bench) -> None:
    other = Exporter(CollectorRegistry())
    with pytest.raises(OSError, match="metrics"):
        await other.start("127.0.0.1", bench.exporter.port)
    await other.stop()
    reader, writer = await connected(bench)
    await eventually(lambda: bench.exporter._open)
    await bench.exporter.stop()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
