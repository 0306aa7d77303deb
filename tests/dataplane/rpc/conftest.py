from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane.engine_options import EngineOptions
from dataplane.rpc import fleet, generations
from dataplane.rpc.engine_client import EngineClient
from dataplane.rpc.engine_process import EngineProcess
from tests.helpers import fake_engine
from tests.helpers.fake_engine import FakeScript
from tests.helpers.rig import EngineLog, Rig, open_rig
from tests.helpers.tokenizers import byte_level, write_tokenizer

StartEngine = Callable[..., contextlib.AbstractAsyncContextManager[EngineClient]]
StartRig = Callable[..., contextlib.AbstractAsyncContextManager[Rig]]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that a busy machine answers late were answered."""
    for name in ("_CALL_TIMEOUT_S", "_HEARTBEAT_TIMEOUT_S", "_LEAVE_TIMEOUT_S"):
        monkeypatch.setattr(fleet, name, 60.0)
    monkeypatch.setattr(generations, "_CALL_TIMEOUT_S", 60.0)


@pytest.fixture
def engine_log(tmp_path: Path) -> EngineLog:
    return EngineLog(tmp_path / "engine.jsonl")


@pytest.fixture
def start_engine(engine_log: EngineLog) -> StartEngine:
    """A client with a started fake engine; the losses it tells of are in `client.losses`."""

    @contextlib.asynccontextmanager
    async def start(
        script: FakeScript | None = None, *, hang_timeout_s: float = 0.0
    ) -> AsyncIterator[EngineClient]:
        environment = fake_engine.environment(script or FakeScript(), engine_log.path)
        client = EngineClient(
            EngineOptions(model_dir="m", model_name="base"),
            process=EngineProcess(fake_engine.COMMAND, environment),
            hang_timeout_s=hang_timeout_s,
            on_lost=engine_log.losses.append,
        )
        try:
            await client.start()
            yield client
        finally:
            await client.stop()

    return start


@pytest.fixture
def start_rig(start_engine: StartEngine, engine_log: EngineLog) -> StartRig:
    """A whole InferenceService on a port of 127.0.0.1, over a fake engine."""

    @contextlib.asynccontextmanager
    async def start(
        script: FakeScript | None = None, *, max_open: int = 8, **limits: Any
    ) -> AsyncIterator[Rig]:
        async with (
            start_engine(script) as engine,
            open_rig(engine, engine_log, max_open=max_open, **limits) as rig,
        ):
            yield rig

    return start


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The option that names a model, of which a frontend reads no more than the tokenizer."""
    write_tokenizer(tmp_path / "base", byte_level())
    (tmp_path / "base" / "config.json").write_text("{}")
    return f"--model={tmp_path / 'base'}"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where fake engines write what they are told."""
    return tmp_path / "engine.jsonl"
