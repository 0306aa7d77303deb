"""A rank that dies or hangs: all of the engine's ranks are replaced, and streams can go on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from chorale.errors import UnavailableError
from dataplane.channel import Sampling
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_keeper import EngineKeeper, KeeperOptions
from dataplane.rpc.engine_stream import EngineStream
from tests.helpers.models import make_model, save_model
from tests.helpers.waiting import PATIENCE_S, eventually

PROMPT = list(range(3, 30))
NUM_TOKENS = 20
MANY_TOKENS = 4000  # it would take seconds
HANG_S = 2.0


def options(model_dir: Path, size: int = 2) -> EngineOptions:
    return EngineOptions(
        model_dir=str(model_dir),
        model_name="tiny",
        device="cpu",
        dtype="float32",
        pool_bytes=32 << 20,
        host_cache_bytes=1 << 20,
        num_threads=2,
        tensor_parallel=size,
    )


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # whoever takes the place of its parent has not looked yet


def submit(client: EngineClient, generated: list[int], num_tokens: int) -> EngineStream:
    sampling = Sampling(max_tokens=num_tokens, temperature=0.8, seed=7, ignore_eos=True)
    return client.submit(prompt=PROMPT, sampling=sampling, arrival_s=0.0, generated=generated)


async def tokens_of(stream: EngineStream, into: list[int]) -> None:
    async for outputs in stream:
        for output in outputs:
            into += output.token_ids


async def test_a_lost_rank_ends_the_engine_and_streams_go_on(tmp_path: Path) -> None:
    model = make_model("llama", max_position_embeddings=MANY_TOKENS + len(PROMPT))
    model_dir = save_model(model, tmp_path / "model")
    keeper = EngineKeeper(KeeperOptions(engine=options(model_dir), hang_timeout_s=HANG_S))
    await keeper.start()
    try:
        ready = await keeper.wait_ready()
        engine, [worker] = keeper.client.pid, children(keeper.client.pid)
        begun: list[int] = []
        stream = submit(keeper.client, [], MANY_TOKENS)
        task = asyncio.create_task(tokens_of(stream, begun))
        await eventually(lambda: len(begun) >= 5, every_s=0.001)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="engine"):
            await asyncio.wait_for(task, PATIENCE_S)
        await asyncio.wait_for(keeper.wait_lost(), PATIENCE_S)
        await eventually(lambda: is_gone(engine) and is_gone(worker))
        assert 5 <= len(begun) < MANY_TOKENS
        assert await keeper.restart()
        assert keeper.ready == ready
        whole: list[int] = []
        await tokens_of(submit(keeper.client, [], len(begun) + NUM_TOKENS), whole)
        assert len(whole) == len(begun) + NUM_TOKENS
        await tokens_of(submit(keeper.client, begun, len(whole)), begun)
        assert begun == whole

        engine, [worker] = keeper.client.pid, children(keeper.client.pid)
        os.kill(worker, signal.SIGSTOP)
        stream = submit(keeper.client, [], NUM_TOKENS)
        with pytest.raises(UnavailableError, match="engine"):
            await asyncio.wait_for(tokens_of(stream, []), PATIENCE_S)
        await asyncio.wait_for(keeper.wait_lost(), PATIENCE_S)
        await eventually(lambda: is_gone(engine) and is_gone(worker))
    finally:
        await keeper.stop()


async def test_an_engine_that_is_stopped_leaves_no_rank(tmp_path: Path) -> None:
    """One whose worker cannot load says why."""
    model_dir = save_model(make_model("llama"), tmp_path / "model")
    client = EngineClient(options(model_dir, 4))
    await client.start()
    try:
        with pytest.raises(DataPlaneError, match="num_key_value_heads is 2") as caught:
            await client.wait_ready()
        assert caught.value.reason == "TENSOR_PARALLEL_MISFIT"
    finally:
        await client.stop()
