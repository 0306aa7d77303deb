"""The engine of the only data plane dies or hangs, and streams go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chorale.client import Client
from chorale.errors import UnavailableError
from chorale.events import CompletionBuilder
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
PROMPT = "407 = "
NUM_TOKENS = 800
NUM_TRIES = 4  # an engine that is lost more often in a row is given up


def num_cut_off(up: ChoraleUp) -> float:
    """Streams that were lost after they had begun."""
    return up.metrics()("chorale_gateway_lost_streams_total")


def num_starts_in(log: Path) -> int:
    """Of engines that were started in place of lost ones."""
    return log.read_text().count("starting the engine again")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChoraleUp]:
    """A deployment whose engines may be killed."""
    # No shorter than the longest step of this machine when it is busy.
    environment = {"CHORALE_ENGINE_TIMEOUT": "3"}
    # In bfloat16 a token computed in a prompt and one computed alone round differently.
    arguments = ("--num-threads=1", "--dtype=float32")
    data_dir = tmp_path_factory.mktemp("fragile") / "data"
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
            frontend, engine = fragile.part("data-plane-0").pid, fragile.engine().pid
            log = fragile.data_dir / "logs" / "data-plane-0.log"
            num_starts, num_cut = num_starts_in(log), num_cut_off(fragile)
            builder, is_lost = CompletionBuilder(), False
            try:
                with client.generate(PROMPT, **options, timeout=120) as events:  # type: ignore[arg-type]
                    for event in events:
                        builder.add(event)
                        if not is_lost and event.text:
                            os.kill(engine, number)
                            is_lost = True
            except UnavailableError as error:  # of busy machines: gateways wait for some 20 s
                assert is_lost and error.reason == "NO_DATA_PLANE", error
            else:
                if num_cut_off(fragile) > num_cut:
                    break
            # On a busy machine all of it may be there before we come to read its first token.
            until(lambda log=log, before=num_starts: num_starts_in(log) > before)
            until(client.data_planes)
        else:
            pytest.fail("it was always complete before the engine was lost, or after it given up")
        resumed = builder.build()
        assert resumed.token_ids == whole.token_ids and resumed.text == whole.text
        assert fragile.part("data-plane-0").pid == frontend, "only its engine was replaced"
        assert fragile.engine().pid != engine and not psutil.pid_exists(engine)
        assert num_starts_in(log) == num_starts + 1
