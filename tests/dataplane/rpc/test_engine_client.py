from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chorale.errors import (
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from dataplane.channel import Output, Sampling, Vocabulary
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_process import EngineProcess
from dataplane.rpc.engine_stream import EngineStream
from tests.dataplane.rpc.conftest import StartEngine
from tests.helpers.fake_control_plane import eventually
from tests.helpers.fake_engine import FakeScript, environment
from tests.helpers.rig import EngineLog

GREEDY = Sampling(max_tokens=16)


def submit(client: EngineClient, sampling: Sampling = GREEDY) -> EngineStream:
    return client.submit(prompt=[5, 6], sampling=sampling, arrival_s=time.monotonic())


async def drain(stream: EngineStream) -> list[Output]:
    return [output async for batch in stream for output in batch]


async def test_submits_and_streams_to_the_end(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine() as client:
        ready = await client.wait_ready()
        assert (ready.model_name, ready.vocab_size) == ("base", 400)
        outputs = await drain(submit(client))
        assert [token for output in outputs for token in output.token_ids] == [10, 11, 12]
        assert outputs[-1].finish == "length"
        assert client.num_open == 0
    assert engine_log.of("Start")[0]["options"]["model_name"] == "base"
    assert engine_log.of("Abort") == []
    assert engine_log.losses == []


async def test_outputs_that_piled_up_come_in_one_batch(start_engine: StartEngine) -> None:
    async with start_engine(FakeScript(tokens=list(range(10, 40)))) as client:
        await client.wait_ready()
        stream = submit(client, Sampling(max_tokens=30))
        await eventually(lambda: client.num_open == 0)
        batch = await anext(stream)
        assert len(batch) == 30
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_closing_a_stream_aborts_it_once(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine(FakeScript(hang_after=1)) as client:
        await client.wait_ready()
        stream, other = submit(client), submit(client)
        await anext(stream)
        stream.close()
        stream.close()
        other.close()
        aborts = await engine_log.wait_for("Abort", 2)
        assert [abort["handle"] for abort in aborts] == [stream.handle, other.handle]
        assert await drain(stream) == []
        assert client.num_open == 0
    assert len(engine_log.of("Abort")) == 2


async def test_a_failed_request_carries_the_engines_error(start_engine: StartEngine) -> None:
    fail = {
        "code": "FAILED_PRECONDITION",
        "reason": "ADAPTER_REFUSED",
        "message": "rank",
        "metadata": {"module": "lm_head"},
    }
    async with start_engine(FakeScript(fail_after=1, fail=fail)) as client:
        await client.wait_ready()
        stream = submit(client)
        assert (await anext(stream))[0].token_ids == [10]
        with pytest.raises(FailedPreconditionError) as raised:
            await anext(stream)
        assert raised.value.reason == "ADAPTER_REFUSED"
        assert raised.value.metadata == {"module": "lm_head"}


@pytest.mark.parametrize(
    ("code", "expected"), [("RESOURCE_EXHAUSTED", ResourceExhaustedError), ("ODD", InternalError)]
)
async def test_error_codes_map_to_classes(
    start_engine: StartEngine, code: str, expected: type[Exception]
) -> None:
    fail = {"code": code, "reason": "R", "message": "m", "retry_after_s": 2.5}
    async with start_engine(FakeScript(fail_after=0, fail=fail)) as client:
        await client.wait_ready()
        with pytest.raises(expected) as raised:
            await anext(submit(client))
        assert raised.value.retry_after_s == 2.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["crash", "garbage"])
async def test_engine_loss_ends_every_stream_and_is_told(
    start_engine: StartEngine, engine_log: EngineLog, how: str
) -> None:
    script = FakeScript(crash_after=1) if how == "crash" else FakeScript(garbage_after=1)
    async with start_engine(script) as client:
        await client.wait_ready()
        streams = [submit(client) for _ in range(3)]
        for stream in streams:
            with pytest.raises(UnavailableError) as raised:
                await drain(stream)
            assert raised.value.reason == "ENGINE_LOST"
            assert raised.value.retry_after_s == 1.0
        assert len(engine_log.losses) == 1
        assert ("status 3" if how == "crash" else "cannot be read") in engine_log.losses[0]
        with pytest.raises(UnavailableError):
            submit(client)
        with pytest.raises(UnavailableError):
            await client.inspect()


async def test_a_hung_engine_is_killed_and_lost(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine(FakeScript(freeze_after=1), hang_timeout_s=1.0) as client:
        await client.wait_ready()
        await asyncio.sleep(1.3)
        assert engine_log.losses == [], "one without work answers when asked"
        stream, began_s = submit(client), time.monotonic()
        with pytest.raises(UnavailableError) as raised:
            await drain(stream)
        assert raised.value.reason == "ENGINE_LOST" and "1 s" in raised.value.message
        assert time.monotonic() - began_s < 50.0
        assert len(engine_log.losses) == 1 and client.is_lost
        await eventually(lambda: not _exists(client.pid))


async def test_an_engine_that_hangs_without_work_is_found_before_a_request_meets_it(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine(hang_timeout_s=1.0) as client:
        await client.wait_ready()
        await drain(submit(client))
        os.kill(client.pid, signal.SIGSTOP)
        await eventually(lambda: client.is_lost)
        await eventually(lambda: not _exists(client.pid))
        assert len(engine_log.losses) == 1 and "1 s" in engine_log.losses[0]


async def test_loading_may_take_longer_than_a_hang(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine(FakeScript(ready_delay_s=1.5), hang_timeout_s=0.8) as client:
        await client.wait_ready()
        assert engine_log.losses == []


async def test_an_engine_that_says_alive_may_take_its_time(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    async with start_engine(FakeScript(hang_after=1, alive=True), hang_timeout_s=0.8) as client:
        await client.wait_ready()
        stream = submit(client)
        await anext(stream)
        await asyncio.sleep(1.2)
        assert engine_log.losses == [] and client.num_open == 1


async def test_tokens_made_before_the_loss_are_delivered_first(start_engine: StartEngine) -> None:
    async with start_engine(FakeScript(crash_after=2)) as client:
        await client.wait_ready()
        stream, got = submit(client), []
        with pytest.raises(UnavailableError):
            async for batch in stream:
                got += [token for output in batch for token in output.token_ids]
        assert got == [10, 11]


async def test_start_failure_carries_the_engines_reason(start_engine: StartEngine) -> None:
    failed = {"reason": "CHECKPOINT_TRUNCATED", "message": "too short", "metadata": {"a": "b"}}
    async with start_engine(FakeScript(start_failed=failed)) as client:
        with pytest.raises(DataPlaneError) as raised:
            await client.wait_ready()
        assert (raised.value.reason, raised.value.metadata) == ("CHECKPOINT_TRUNCATED", {"a": "b"})


async def test_death_before_ready_is_told(start_engine: StartEngine, engine_log: EngineLog) -> None:
    async with start_engine(FakeScript(exit_before_ready=7)) as client:
        with pytest.raises(UnavailableError, match="status 7"):
            await client.wait_ready()
    assert len(engine_log.losses) == 1


async def test_stats_and_inspect(start_engine: StartEngine) -> None:
    stats = {
        "num_running": 1,
        "num_waiting": 2,
        "num_pages": 100,
        "num_available_pages": 90,
        "num_used_pages": 10,
        "num_generated_tokens": 5,
        "pool_digests": ["a"],
        "host_digests": [],
        "disk_digests": [],
    }
    async with start_engine(FakeScript(stats=stats)) as client:
        await client.wait_ready()
        await eventually(lambda: client.stats is not None)
        assert client.stats is not None and client.stats.num_waiting == 2
        first, second = await asyncio.gather(client.inspect(), client.inspect())
        assert first.num_used_pages == 1 and first.ticket != second.ticket


async def test_stop_ends_open_streams_and_leaves_nothing(
    start_engine: StartEngine,
    engine_log: EngineLog,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with start_engine(FakeScript(hang_after=0)) as client:
        await client.wait_ready()
        (directory,) = tmp_path.glob("chorale-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        stream, pid = submit(client), client.pid
        await client.stop()
        with pytest.raises(UnavailableError) as raised:
            await drain(stream)
        assert raised.value.reason == "SHUTTING_DOWN"
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine_log.losses == []


async def test_a_stubborn_engine_is_killed(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataplane.rpc.engine_client._SHUTDOWN_GRACE_S", 0.1)
    monkeypatch.setattr("dataplane.rpc.engine_process._TERMINATE_S", 0.1)
    async with start_engine(FakeScript(stubborn=True)) as client:
        await client.wait_ready()
        pid = client.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_command_that_cannot_run_is_an_os_error(tmp_path: Path) -> None:
    client = EngineClient(
        EngineOptions(model_dir="m", model_name="base"),
        process=EngineProcess((str(tmp_path / "missing"),)),
    )
    with pytest.raises(OSError, match="missing"):
        await client.start()
    await client.stop()


async def test_the_engine_may_import_torch_and_prints_nothing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USE_TORCH", "0")
    process = EngineProcess((sys.executable, "-c", "import os; print('USE_TORCH' in os.environ)"))
    process.start()
    assert await process.wait() == 0
    await process.stop(1)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "False\n")


async def test_what_a_killed_frontend_left_behind_is_removed_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "from dataplane.rpc.engine_process import EngineProcess as E; import os; E(); "
    killed = subprocess.run(
        [sys.executable, "-c", program + "os.kill(os.getpid(), 9)"],
        env={**environment(FakeScript(), tmp_path / "log"), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert killed.returncode == -9
    (left,) = tmp_path.glob("chorale-*")
    living = EngineProcess()
    try:
        assert not left.exists()
        other = EngineProcess()
        assert len(list(tmp_path.glob("chorale-*"))) == 2, "those in use stay"
        other.discard()
    finally:
        living.discard()
    assert list(tmp_path.glob("chorale-*")) == []


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


VOCABULARY = Vocabulary(tokenizer=b"{}", num_tokens=1, vocab_size=1, eos_token_ids=[])


async def test_an_engine_that_reads_a_large_vocabulary_is_waited_for(
    start_engine: StartEngine, engine_log: EngineLog
) -> None:
    """However silent it is meanwhile."""
    async with start_engine(FakeScript(taught_delay_s=1.2), hang_timeout_s=0.8) as client:
        await client.wait_ready()
        began_s = time.monotonic()
        await client.teach(VOCABULARY)
        assert time.monotonic() - began_s >= 1.2
        assert (await drain(submit(client)))[-1].finish == "length"
    assert engine_log.losses == []


async def test_an_engine_that_dies_of_its_vocabulary_is_lost(start_engine: StartEngine) -> None:
    async with start_engine(FakeScript(crash_when_taught=True)) as client:
        await client.wait_ready()
        with pytest.raises(UnavailableError, match="exited with status 3"):
            await asyncio.wait_for(client.teach(VOCABULARY), 60)
