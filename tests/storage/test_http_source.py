from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from storage.errors import (
    AdapterTooLargeError,
    PickleRefusedError,
    SourceAccessError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTimeoutError,
    SourceUnavailableError,
    SourceUnreadableError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from storage.limits import AdapterLimits
from storage.sources import Access, Progress, SourceOptions, SourceRouter, build_router
from storage.sources.retry import Patience
from tests.helpers.waiting import eventually
from tests.helpers.web import Web, serving
from tests.storage.samples import files

SAMPLE = files(1)
PATIENT = Patience(
    connect_s=30, stall_s=30, attempt_s=60, total_s=100, max_attempts=3, first_pause_s=0.01
)
HASTY = replace(PATIENT, stall_s=0.4)
CONFIG, WEIGHTS = f"/a/{CONFIG_NAME}", f"/a/{WEIGHTS_NAME}"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        made.put(CONFIG, SAMPLE.config)
        made.put(WEIGHTS, bytes(SAMPLE.weights))
        yield made


def router(web: Web, limits: AdapterLimits | None = None, **fields: Any) -> SourceRouter:
    fields = {"allowed": [web.url], "private_hosts": [web.host], "patience": PATIENT, **fields}
    return build_router(SourceOptions(**fields), limits or AdapterLimits())


@pytest.fixture
async def source(web: Web) -> AsyncIterator[SourceRouter]:
    made = router(web)
    yield made
    await made.aclose()


async def test_reads_both_files(web: Web, source: SourceRouter) -> None:
    progress: list[Progress] = []
    found = await source.fetch(f"{web.url}/a/", Access(on_progress=progress.append))
    assert (found.config, found.weights) == (SAMPLE.config, SAMPLE.weights)
    assert found.uri == f"{web.url}/a"
    assert (WEIGHTS_NAME, len(SAMPLE.weights), len(SAMPLE.weights)) in progress
    assert [r.path for r in web.requests] == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("validator", ['"1"', "Sun, 06 Nov 1994 08:49:37 GMT"])
async def test_goes_on_where_it_broke_off(web: Web, source: SourceRouter, validator: str) -> None:
    page = web.pages[WEIGHTS]
    page.etag, page.cut_at, page.cuts = '"1"', 200, 4  # more cuts than attempts: each brought some
    found = await source.fetch(f"{web.url}/a")
    assert found.weights == SAMPLE.weights
    asked = [r.headers.get("Range", "") for r in web.seen(WEIGHTS)]
    assert asked == ["", *(f"bytes={200 * n}-" for n in range(1, 5))]
    assert {r.headers.get("If-Range") for r in web.seen(WEIGHTS)[1:]} == {'"1"'}


async def test_content_that_changes_in_between_is_begun_afresh(
    web: Web, source: SourceRouter
) -> None:
    new = bytes(files(2).weights)
    page = web.put(WEIGHTS, bytes(SAMPLE.weights), cut_at=300, cuts=1)

    def change(request: object) -> None:
        if len(web.seen(WEIGHTS)) == 2:
            page.data, page.etag = new, '"2"'

    web.on_request = change
    assert (await source.fetch(f"{web.url}/a")).weights == new


@pytest.mark.parametrize("fields", [{"ranges": False}, {"etag": 'W/"1"'}, {"etag": ""}])
async def test_without_ranges_or_a_strong_validator_it_begins_afresh(
    web: Web, source: SourceRouter, fields: dict[str, Any]
) -> None:
    web.put(WEIGHTS, bytes(SAMPLE.weights), cut_at=300, cuts=2, **fields)
    assert (await source.fetch(f"{web.url}/a")).weights == SAMPLE.weights
    if "etag" in fields:
        assert all("Range" not in r.headers for r in web.seen(WEIGHTS))


async def test_a_busy_server_is_asked_again_and_then_given_up(
    web: Web, source: SourceRouter
) -> None:
    page = web.pages[CONFIG]
    page.busy = 2
    assert (await source.fetch(f"{web.url}/a")).config == SAMPLE.config
    page.busy = 100
    with pytest.raises(SourceUnavailableError, match=r"3 times in a row.*status 503"):
        await source.fetch(f"{web.url}/a")
    assert page.busy == 97
    page.busy = 0  # it comes back, and so does the adapter
    assert (await source.fetch(f"{web.url}/a")).config == SAMPLE.config


async def test_retry_after_is_heeded(web: Web) -> None:
    page = web.put(CONFIG, SAMPLE.config, busy=1, busy_headers={"Retry-After": "1"})
    made = router(web)
    began = time.monotonic()
    await made.fetch(f"{web.url}/a")
    assert time.monotonic() - began >= 0.9
    assert page.busy == 0
    await made.aclose()


async def test_a_server_that_hangs_ends_typed_and_in_time(web: Web) -> None:
    web.put(CONFIG, SAMPLE.config, hang=threading.Event())  # it would answer after a minute
    made = router(web, patience=HASTY)
    with pytest.raises(SourceUnavailableError, match="3 times in a row"):
        await made.fetch(f"{web.url}/a")
    await made.aclose()


async def test_a_trickle_ends_with_the_total_deadline(web: Web) -> None:
    web.put(WEIGHTS, bytes(SAMPLE.weights), piece_bytes=1, pause_s=0.02)
    made = router(web, patience=replace(PATIENT, attempt_s=0.2, total_s=0.5))
    with pytest.raises((SourceTimeoutError, SourceUnavailableError)) as caught:
        await made.fetch(f"{web.url}/a")
    assert caught.value.reason == "SOURCE_TIMEOUT"
    await made.aclose()


async def test_sizes_are_bounded_before_and_while_reading(web: Web) -> None:
    limit = len(SAMPLE.weights) - 1
    made = router(web, AdapterLimits(max_weights_bytes=limit))
    with pytest.raises(AdapterTooLargeError) as caught:
        await made.fetch(f"{web.url}/a")
    assert caught.value.metadata["limit_bytes"] == str(limit)
    web.put(WEIGHTS, b"x" * (1 << 20), length=None)  # untold: stopped while it arrives
    with pytest.raises(AdapterTooLargeError):
        await made.fetch(f"{web.url}/a")
    web.put(WEIGHTS, b"", length=1 << 40)  # claimed only: refused before any of it
    with pytest.raises(AdapterTooLargeError, match=str(1 << 40)):
        await made.fetch(f"{web.url}/a")
    await made.aclose()


async def test_an_encoded_answer_is_refused(web: Web, source: SourceRouter) -> None:
    web.pages[CONFIG].encoding = "gzip"
    with pytest.raises(SourceUnreadableError, match="encoded"):
        await source.fetch(f"{web.url}/a")


async def test_missing_files_and_pickles_are_named(web: Web, source: SourceRouter) -> None:
    with pytest.raises(SourceNotFoundError, match="404"):
        await source.fetch(f"{web.url}/elsewhere")
    del web.pages[WEIGHTS]
    with pytest.raises(SourceNotFoundError, match=WEIGHTS_NAME):
        await source.fetch(f"{web.url}/a")
    web.put("/a/adapter_model.bin", b"\x80\x02")
    with pytest.raises(PickleRefusedError):
        await source.fetch(f"{web.url}/a")
    assert not web.seen("/a/adapter_model.bin")  # asked for, never read


async def test_the_token_opens_what_is_private(web: Web, source: SourceRouter) -> None:
    for path in (CONFIG, WEIGHTS):
        web.pages[path].token = "mine"
    uri = f"{web.url}/a"
    for access in (Access(), Access("another's")):
        with pytest.raises(SourceAccessError, match="token"):
            await source.fetch(uri, access)
        with pytest.raises(SourceAccessError):
            await source.check(uri, access)
    await source.check(uri, Access("mine"))
    assert (await source.fetch(uri, Access("mine"))).weights == SAMPLE.weights
    assert "mine" not in repr(Access("mine"))


@pytest.mark.parametrize("login", ["", "/login"])
async def test_a_token_is_not_good_because_its_refusal_is_polite(
    web: Web, source: SourceRouter, login: str
) -> None:
    """Servers without HEAD, and those that show a page to log in."""
    web.put("/a/login", b"<html>Who are you?</html>")
    page = web.pages[CONFIG]
    page.token, page.head_status = "mine", 0 if login else 405
    page.login = f"{web.url}/a{login}" if login else ""
    uri = f"{web.url}/a"
    with pytest.raises(SourceAccessError):
        await source.check(uri, Access("another's"))
    await source.check(uri, Access("mine"))


async def test_a_redirection_is_checked_and_loses_the_token(web: Web) -> None:
    with serving() as other:
        other.put("/files/w", bytes(SAMPLE.weights))
        web.pages[WEIGHTS].location = f"{other.url}/files/w"
        web.pages[WEIGHTS].token = "mine"
        made = router(web)
        with pytest.raises(SourceNotAllowedError, match="--allow-source"):
            await made.fetch(f"{web.url}/a", Access("mine"))
        await made.aclose()
        # The host itself may be listed, but lies inside this network.
        made = router(web, allowed=[web.url, other.url])
        with pytest.raises(SourceNotAllowedError, match="--allow-private-host"):
            await made.fetch(f"{web.url}/a", Access("mine"))
        assert other.requests == []
        await made.aclose()
        hosts = [web.host, other.host]
        made = router(web, allowed=[web.url, f"{other.url}/files"], private_hosts=hosts)
        found = await made.fetch(f"{web.url}/a", Access("mine"))
        assert found.weights == SAMPLE.weights
        assert ["Authorization" in r.headers for r in other.requests] == [False]
        web.pages[WEIGHTS].location = f"{web.url}{WEIGHTS}"
        with pytest.raises(SourceUnreadableError, match="redirects more"):
            await made.fetch(f"{web.url}/a", Access("mine"))
        await made.aclose()


async def test_a_redirection_may_carry_a_signature(web: Web) -> None:
    web.put("/signed/w", bytes(SAMPLE.weights))
    page = web.pages[WEIGHTS]
    page.location = f"{web.url}/signed/w?signature=a/b%20c&expires=1#x"
    made = router(web, allowed=[f"{web.url}/a", f"{web.url}/signed"])
    found = await made.fetch(f"{web.url}/a")
    assert (found.weights, found.uri) == (SAMPLE.weights, f"{web.url}/a")
    assert web.requests[-1].path == "/signed/w?signature=a/b%20c&expires=1"
    # Only the redirection: what is registered is kept, and told to everybody.
    with pytest.raises(SourceUnreadableError, match="query"):
        await made.fetch(f"{web.url}/a?signature=1")
    page.location = f"{web.url}/other?x=/signed/"
    with pytest.raises(SourceNotAllowedError) as refused:
        await made.fetch(f"{web.url}/a")
    assert "x=" not in refused.value.message
    await made.aclose()


NO_ADDRESSES = [
    "http://[::1",
    "//[bad]/x",
    "http://host:abc/",
    "https://example.com:99999999/x",
    "https://example.com:0/x",
    "https://user:pw@example.com:x/",
    "https://ex\u00e4mple.com/x",
    "https:///x",
]


@pytest.mark.parametrize("location", NO_ADDRESSES)
async def test_a_redirection_to_no_address_is_typed(
    web: Web, source: SourceRouter, location: str
) -> None:
    web.pages[CONFIG].location = location
    with pytest.raises(SourceUnreadableError, match=r"redirects to .* no address"):
        await source.fetch(f"{web.url}/a")


async def test_a_range_of_endless_digits_is_typed(web: Web, source: SourceRouter) -> None:
    web.pages[CONFIG].content_range = f"bytes {'0' * 5000}-1/2"
    with pytest.raises(SourceUnavailableError, match="range"):
        await source.fetch(f"{web.url}/a")


async def test_informational_answers_without_end_are_given_up(
    web: Web, source: SourceRouter
) -> None:
    web.pages[CONFIG].flood = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000
    with pytest.raises(SourceUnavailableError, match="no answer within 262144 bytes"):
        await source.fetch(f"{web.url}/a")


async def test_chunks_of_a_byte_let_others_run(web: Web) -> None:
    data = bytes(100_000)
    web.put(WEIGHTS, data, chunk_bytes=1)
    made = router(web, patience=Patience())
    fetching = asyncio.create_task(made.fetch(f"{web.url}/a"))
    longest_s, before_s = 0.0, time.thread_time()
    while not fetching.done():
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, time.thread_time() - before_s)
        before_s = time.thread_time()
    assert (await fetching).weights == data
    assert longest_s < 0.1  # of the processor; all chunks of one read take four times as much
    await made.aclose()


async def test_nothing_is_fetched_unless_allowed(web: Web) -> None:
    for allowed in ([], ["https://example.com"], [f"{web.url}/b"], ["hf://", "s3://*"]):
        made = router(web, allowed=allowed)
        with pytest.raises(SourceNotAllowedError, match="--allow-source"):
            await made.fetch(f"{web.url}/a")
        await made.aclose()
    assert web.requests == []


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1", "127.1", "0x7f.0.0.1", "2130706433", "localhost"]
)
async def test_loopback_is_refused_however_it_is_spelled(web: Web, spelling: str) -> None:
    made = router(web, allowed=["http://*:" + web.url.rpartition(":")[2]], private_hosts=[])
    with pytest.raises(SourceNotAllowedError, match="inside this network"):
        await made.fetch(f"http://{spelling}:{web.url.rpartition(':')[2]}/a")
    assert web.requests == []
    await made.aclose()


async def test_no_server_at_all_is_unavailable(web: Web) -> None:
    url = "http://127.0.0.1:9"
    made = router(web, allowed=[url], private_hosts=["127.0.0.1"])
    with pytest.raises(SourceUnavailableError):
        await made.fetch(f"{url}/a")
    await made.aclose()


async def test_one_hanging_server_does_not_hold_up_another(web: Web) -> None:
    with serving() as other:
        other.put(CONFIG, SAMPLE.config)
        other.put(WEIGHTS, bytes(SAMPLE.weights))
        gate = threading.Event()
        page = web.put(CONFIG, b"", hang=gate, busy=1000)
        made = router(web, allowed=[web.url, other.url], private_hosts=["127.0.0.1"])
        hanging = [asyncio.create_task(made.fetch(f"{web.url}/a")) for _ in range(12)]
        try:
            await eventually(lambda: len(web.seen(CONFIG)) == len(hanging))
            assert (await made.fetch(f"{other.url}/a")).weights == SAMPLE.weights
            assert not any(task.done() for task in hanging)
        finally:
            gate.set()
            results = await asyncio.gather(*hanging, return_exceptions=True)
            await made.aclose()
        assert all(isinstance(result, SourceUnavailableError) for result in results)
        assert page.busy == 1000 - 3 * len(hanging)
