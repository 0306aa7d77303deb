from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from chorale.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from chorale.token_spans import MAX_TEXT_CHARACTERS
from chorale.v1 import inference_pb2 as pb
from dataplane.rpc.tokenizing import Tokenizing
from dataplane.text.tokenizer import Span
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually
from tests.helpers.rig import BACKEND, TOKENIZER

LONG = "hello".ljust(MAX_TEXT_CHARACTERS)


class Held:
    """A tokenizer that waits until it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.began: list[str] = []

    def spans(self, text: str, **_: Any) -> Iterator[Span]:
        self.began.append(text)
        assert self.go_on.wait(60)
        return iter([Span(1, text[:5], 0, 5)])


@pytest.mark.parametrize("add", [None, True, False])
async def test_it_needs_no_ticket_and_cuts_as_a_prompt_is_cut(
    start_rig: StartRig, add: bool | None
) -> None:
    text = "größe 你好 hello"
    async with start_rig() as rig:
        tokens = await rig.tokenize(text=text, add_special_tokens=add, model="whatever")
        assert rig.service.num_open == 0
    expected = BACKEND.encode(text, add_special_tokens=add is not False)
    assert [token.token_id for token in tokens] == expected.ids
    assert [token.piece for token in tokens] == expected.tokens
    assert [(token.start, token.stop) for token in tokens] == expected.offsets


async def test_a_whole_context_fits_and_no_more(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        assert len(await rig.tokenize(text="x" * 63)) == 64  # BOS is one
        for length in (64, 50_000, MAX_TEXT_CHARACTERS + 1):
            with pytest.raises(InvalidArgumentError) as raised:
                await rig.tokenize(text="x" * length)
            assert raised.value.reason == "TEXT_TOO_LONG"
            assert raised.value.metadata["field"] == "text"
            assert len(raised.value.message) < 200


async def test_a_data_plane_that_drains_sends_elsewhere(start_rig: StartRig) -> None:
    async with start_rig() as rig:
        await rig.service.drain(0, asyncio.Event())
        with pytest.raises(UnavailableError) as raised:
            await rig.tokenize(text="x")
    assert raised.value.reason == "SHUTTING_DOWN"


async def test_long_texts_leave_the_event_loop_free() -> None:
    cutting = Tokenizing(TOKENIZER, max_context_tokens=1 << 18)
    text = "größe hello 你好 " * 14_000
    began_s = time.process_time()
    offsets = BACKEND.encode(text).offsets  # with the interpreter lock throughout
    encode_s = time.process_time() - began_s
    stalls: list[float] = []
    for _ in range(3):  # another thread may get the processor
        task = asyncio.create_task(cutting.tokenize(pb.TokenizeRequest(text=text), None))
        stalls.append(await _longest_stall_s(task))
        assert [token.start for token in task.result().tokens] == [start for start, _ in offsets]
    assert min(stalls) < encode_s / 3
    cutting.close()


async def _longest_stall_s(task: asyncio.Task[Any]) -> float:
    """On a clock that stands still with this process, as when the machine has others to serve."""
    longest_s, last_s = 0.0, time.process_time()
    while not task.done():
        await asyncio.sleep(0.001)
        longest_s, last_s = max(longest_s, time.process_time() - last_s), time.process_time()
    return longest_s


async def test_long_texts_at_once_are_bounded_and_short_ones_pass() -> None:
    held = Held()
    cutting = Tokenizing(held, max_context_tokens=10_000)  # pyright: ignore[reportArgumentType]
    request = pb.TokenizeRequest(text=LONG)
    tasks = [asyncio.create_task(cutting.tokenize(request, None)) for _ in range(4)]
    await eventually(lambda: held.began)
    with pytest.raises(ResourceExhaustedError) as raised:
        await cutting.tokenize(request, None)
    assert raised.value.reason == "TOO_MANY_TEXTS" and raised.value.retry_after_s == 1.0
    tasks[-1].cancel()
    await asyncio.gather(tasks.pop(), return_exceptions=True)
    with pytest.raises(DeadlineExceededError):
        await cutting.tokenize(request, time.monotonic() + 0.05)
    held.go_on.set()
    short = await cutting.tokenize(pb.TokenizeRequest(text="hello"), None)
    assert [token.piece for token in short.tokens] == ["hello"]
    assert all(answer == short for answer in await asyncio.gather(*tasks))
    assert held.began.count(LONG) == 3, "who went away is not worked for"
    cutting.close()
