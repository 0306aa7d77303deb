"""The engine of the only data plane dies or hangs, and streams go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chorale.client import Client
from chorale.events import CompletionBuilder
from tests.helpers.up import ChoraleUp

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
PROMPT = "407 = "
NUM_TOKENS = 800
NUM_TRIES = 4  # an engine that is lost more often in a row is given up


def engine_of(up: ChoraleUp) -> psutil.Process:
    """Waits for it: between two engines there is none."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in up.part("data-plane-0").children(recursive=True):
            try:
                if "dataplane.engine.process" in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    raise AssertionError("the data plane has no engine")


def until_restarted(client: Client, log: Path, num_starts: int) -> None:
    end = time.monotonic() + 60
    while (
        log.read_text().count("starting the engine again") == num_starts or not client.data_planes()
    ):
        assert time.monotonic() < end, "the engine was not started again"
        time.sleep(0.05)


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[ChoraleUp]:
    """A deployment whose engines may be killed."""
    # No shorter than the longest step of this machine when it is busy.
    environment = {"CHORALE_ENGINE_TIMEOUT": "3"}
    # In bfloat16 a token computed in a prompt and one computed alone round differently.
    arguments = ("--num-threads=1", "--dtype=float32")
    data_dir = tmp_path / "data"
    with ChoraleUp(data_dir, *arguments, environment=environment) as up:
        yield up
        assert up.stop() == 0


@pytest.mark.parametrize(
    ("number", "constraint"),
    [
        (signal.SIGKILL, {}),
        (signal.SIGKILL, {"json_schema": {"type": "array", "minItems": 400}}),
        (signal.SIGSTOP, {}),
    ],
)
def test_a_stream_goes_on_when_the_engine_is_lost(
    fragile: ChoraleUp, number: signal.Signals, constraint: dict[str, Any]
) -> None:
    with Client(fragile.grpc_address, timeout=60) as client:
        options = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": 11}
        options |= constraint
        whole = client.complete(PROMPT, **options)  # type: ignore[arg-type]
        for _ in range(NUM_TRIES):
            frontend, engine = fragile.part("data-plane-0").pid, engine_of(fragile).pid
            log = fragile.data_dir / "logs" / "data-plane-0.log"
            num_starts = log.read_text().count("starting the engine again")
            builder, cut_s = CompletionBuilder(), 0.0
            with client.generate(PROMPT, **options, timeout=120) as events:  # type: ignore[arg-type]
                for event in events:
                    builder.add(event)
                    if not cut_s and event.text:
                        os.kill(engine, number)
                        cut_s = time.monotonic()
            if time.monotonic() - cut_s > 0.5:
                break
            # On a busy machine all of it may be there before we come to read its first token.
            until_restarted(client, log, num_starts)
        else:
            pytest.fail("it was always complete before the engine was lost")
        resumed = builder.build()
        assert resumed.token_ids == whole.token_ids and resumed.text == whole.text
        assert fragile.part("data-plane-0").pid == frontend, "only its engine was replaced"
        assert engine_of(fragile).pid != engine and not psutil.pid_exists(engine)
        assert log.read_text().count("starting the engine again") == num_starts + 1
