"""Clients that do not read hold back nobody but themselves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from chorale.v1 import inference_pb2_grpc
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.fake_control_plane import eventually
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import Rig, tokens_of

NUM_SLOW, NUM_FAST = 900, 100
TOKENS = [20 + i % 60 for i in range(48)]
# Receive windows that are soon full, so that the server has to wait for the reader.
SMALL_WINDOWS = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


async def rest_of(call: Any) -> list[Any]:
    events: list[Any] = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


@pytest.mark.timeout(120)
async def test_900_slow_readers_do_not_hold_back_100_others(start_rig: StartRig) -> None:
    script = FakeScript(tokens=TOKENS, burst=4, ready={"max_context_tokens": 256})
    async with start_rig(script, max_open=NUM_SLOW + NUM_FAST) as rig:
        slow = [rig.call() for _ in range(NUM_SLOW)]
        firsts = await asyncio.gather(*(call.read() for call in slow))
        assert all(first.HasField("accepted") for first in firsts)
        began_s = time.process_time()  # which stands still while others have the processor
        fast = await asyncio.gather(*(rig.generate() for _ in range(NUM_FAST)))
        took_s = time.process_time() - began_s
        assert all(tokens_of(events) == TOKENS for events in fast)
        assert not any(call.done() for call in slow), "1,000 streams were open at once"
        assert rig.engine.num_open == 0, "the engine waits for no reader"
        assert took_s < 20
        for events in await asyncio.gather(*map(rest_of, slow)):
            assert tokens_of(events) == TOKENS, "who reads late misses nothing"


async def test_what_a_slow_reader_has_not_taken_is_merged(start_rig: StartRig) -> None:
    num_tokens = 4000
    tokens = [20 + i % 60 for i in range(num_tokens)]
    script = FakeScript(
        tokens=tokens, burst=8, logprobs=True, ready={"max_context_tokens": num_tokens + 64}
    )
    sampling = {"logprobs": 2, "max_tokens": num_tokens}
    async with (
        start_rig(script) as rig,
        grpc.aio.insecure_channel(rig.server.address, options=SMALL_WINDOWS) as channel,
    ):
        fast_stub, rig.stub = rig.stub, inference_pb2_grpc.InferenceServiceStub(channel)
        slow = [rig.call(sampling=sampling) for _ in range(3)]
        for call in slow:
            assert (await call.read()).HasField("accepted")
        await eventually(lambda: rig.engine.num_open == 0)
        assert rig.service.num_open == 3, "their handlers wait for the readers"
        rig.stub = fast_stub
        assert tokens_of(await _generate(rig)) == tokens[:16]
        for call in slow:
            events = await rest_of(call)
            assert tokens_of(events) == tokens
            sizes = [len(event.tokens.token_ids) for event in events if event.HasField("tokens")]
            assert max(sizes) > 100, "all that had piled up came at once"


async def _generate(rig: Rig) -> list[Any]:
    return await rig.generate(sampling={"max_tokens": 16})
