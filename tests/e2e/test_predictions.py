"""What follows an adapter is in host memory before anybody asks for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

import chorale
from chorale.errors import ChoraleError
from chorale.v1 import fleet_pb2 as pb
from controlplane.store import keys
from tests.e2e.conftest import ADAPTERS
from tests.helpers import up as helpers
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import until

NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def redis(up: ChoraleUp) -> Iterator[Redis]:
    url = up.part("control-plane").environ()["CHORALE_REDIS"]
    client = Redis.from_url(url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def digests(client: chorale.Client, adapter_root: Path) -> dict[str, str]:
    """Of adapters that no other test uses."""
    found: dict[str, str] = {}
    for index, name in enumerate(NAMES):
        copied = adapter_root / f"predicted-{name}"
        shutil.copytree(ADAPTERS / "roman", copied)
        path = copied / "adapter_config.json"
        config = json.loads(path.read_text())
        config["lora_alpha"] += index + 1
        path.write_text(json.dumps(config))
        found[name] = client.adapters.register(f"predicted-{name}", str(copied)).version.digest
    return found


def visit(up: ChoraleUp, tenant: str, *names: str) -> None:
    """Asks for places only: nothing is generated, so that no request brings the adapters."""
    with chorale.Client(up.grpc_address, tenant=tenant) as client:
        for name in names:
            until(lambda name=name: _admitted(client, f"predicted-{name}"))
            time.sleep(0.1)


def _admitted(client: chorale.Client, model: str) -> bool:
    try:
        client.admit(model)
    except ChoraleError as error:
        assert error.retry_after_s, error  # while the control plane is started again
        return False
    return True


def test_what_follows_is_there_before_it_is_asked_for(
    up: ChoraleUp, client: chorale.Client, redis: Redis, digests: dict[str, str]
) -> None:
    def in_memory() -> set[str]:
        (plane,) = client.data_planes()
        held = {*plane.residency.pool_digests, *plane.residency.host_digests}
        return {name for name, digest in digests.items() if digest in held}

    def counted() -> set[tuple[str, str]]:
        """Tenants, with what they have come to last."""
        lasts = cast("dict[str, str]", redis.hgetall(keys.SESSION_LAST)).items()
        return {
            (tenant, name)
            for tenant, last in lasts
            for name, digest in digests.items()
            if digest in last
        }

    def brings(name: str) -> bool:
        """And says so: of each prediction for a while only."""
        if _was_asked(client, digests[name]):
            asked.add(name)
        return name in in_memory() and name in asked

    asked: set[str] = set()
    redis.set(keys.PREDICTOR, "this test")  # nobody predicts meanwhile
    for tenant in range(6):
        visit(up, f"learner-{tenant}", "first", "second")
        visit(up, f"other-{tenant}", "third", "fourth")
    # What was asked for is written behind the requests' backs.
    learnt = {(f"learner-{tenant}", "second") for tenant in range(6)}
    learnt |= {(f"other-{tenant}", "fourth") for tenant in range(6)}
    until(lambda: counted() >= learnt)
    # Ten minutes later: nothing is asked for often enough to be brought for that alone.
    cast("int", redis.hincrby(keys.DEMAND_CLOCK, "now", 600_000))
    redis.delete(keys.VISITED, keys.PREDICTOR)
    until(lambda: client.demand().predicting)
    time.sleep(2.5)
    assert in_memory() == set()

    visit(up, "somebody", "first")
    until(lambda: brings("second"))
    assert "fourth" not in in_memory()

    process = up.part("control-plane")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    visit(up, "somebody-else", "third")
    until(lambda: brings("fourth"))

    shown = helpers.chorale("demand", f"--address={up.grpc_address}", "--limit=100")
    assert shown.returncode == 0, shown.stderr
    assert "predicted-second@1" in shown.stdout and "follow" in shown.stdout


def _was_asked(client: chorale.Client, digest: str) -> bool:
    return any(
        each.digest == digest and each.kind == pb.PREDICTION_KIND_FOLLOW
        for each in client.demand().predictions
    )
