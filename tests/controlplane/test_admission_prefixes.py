"""Admit by where a prompt's beginning was sent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from chorale import tickets
from chorale.requests import AdmitOptions, admit_request
from chorale.v1 import admission_pb2 as pb
from chorale.v1 import fleet_pb2
from controlplane.admission.prefixes import MAX_PREFIXES, PrefixKey, ToldPrefixes
from controlplane.admission.reservations import Reservations
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis
from tests.controlplane.test_admission_objective import outlook
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, LEASE_S, ControlPlane, failure, running
from tests.helpers.prometheus import Metrics
from tests.helpers.redis import send

SYSTEM = "You are asked for help with the garden, and help. " * 40
PLANES = ("dp-0", "dp-1", "dp-2")
# A wait that no pause of the machine makes up for, and less than SYSTEM takes to compute.
IDLE = {"num_open": 64, "request_prefill_s": 0.0, "prefill_token_s": 1.0}
BEHIND = IDLE | {"behind_running_s": 60.0}


async def fleet(plane: ControlPlane, *planes: str, incarnation: int = 1) -> None:
    for name in planes:
        await plane.join(name, incarnation=incarnation)
        await report(plane, name, incarnation)


async def report(plane: ControlPlane, name: str, incarnation: int = 1, **changes: Any) -> None:
    told = outlook(cached_for_s=60.0, decode_step_s=0.001, **changes)
    load = fleet_pb2.Load(max_running=64, outlook=told, characters_per_token=4.0)
    beat = fleet_pb2.HeartbeatRequest(data_plane_id=name, incarnation=incarnation, load=load)
    await plane.fleet.Heartbeat(beat, metadata=AUTHORIZATION)


async def ask(plane: ControlPlane, *contents: str, tenant: str = "", model: str = "") -> str:
    """Where a conversation's turn is placed; what it sent there is known when this returns."""
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = [{"role": roles[at], "content": each} for at, each in enumerate(contents)]
    options: AdmitOptions = {"messages": messages}
    placed = await plane.admission.Admit(admit_request(model, options, tenant=tenant))
    await plane.until_written()
    return placed.data_plane_id


async def elsewhere(plane: ControlPlane, taken: str) -> None:
    """By load and order alone nobody would go to `taken` now."""
    for name in PLANES:
        await report(plane, name, **IDLE)
    await report(plane, taken, **BEHIND)


async def test_turns_follow_their_conversation(redis_url: str) -> None:
    """Over two replicas, and past data planes that are less busy."""
    async with running(redis_url) as one, running(redis_url) as two:
        await fleet(one, *PLANES)
        first = await ask(one, SYSTEM, "Roses?")
        await elsewhere(one, first)
        assert await ask(two, SYSTEM, "Roses?", "In June.", "And tulips?") == first
        await elsewhere(one, first)
        assert await ask(one, SYSTEM + "!", "Roses?") == first, "only the last piece differs"
        await elsewhere(one, first)
        assert await ask(one, "Another. " * 300, "Roses?") != first


async def test_prefixes_are_a_tenants_and_an_adapters_own(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await fleet(plane, *PLANES)
    await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    first = await ask(plane, SYSTEM, "Roses?", tenant="acme")
    for tenant, model, expected in (
        ("acme", "tiny/llama", True),
        ("other", "", False),
        ("", "", False),
        ("acme", "voice", False),
    ):
        await elsewhere(plane, first)
        placed = await ask(plane, SYSTEM, "Tulips?", tenant=tenant, model=model)
        assert (placed == first) is expected, (tenant, model)


async def test_activated_adapters_share_the_bases(plane: ControlPlane, tmp_path: Path) -> None:
    """Of every one of them a prompt begins as the base model's does."""
    await fleet(plane, *PLANES)
    for name, tokens in (("judge", [5, 6]), ("critic", [7]), ("voice", None)):
        config = {"alora_invocation_tokens": tokens}
        await plane.register(name, make_adapter_dir(tmp_path / name, config=config))
    first = await ask(plane, SYSTEM, "Roses?")
    for model, expected in (("judge", True), ("voice", False)):
        await elsewhere(plane, first)
        placed = await ask(plane, SYSTEM, "Roses?", "In June.", "Good?", model=model)
        assert (placed == first) is expected, model
    first = await ask(plane, "Of others. " * 300, "Roses?", model="voice")
    await elsewhere(plane, first)
    assert await ask(plane, "Of others. " * 300, "Lilies?", model="voice") == first
    another = "Hills and dales, and far away the sea. " * 40
    first = await ask(plane, another, "Boats?", model="judge")
    for model in ("critic", "tiny/llama"):
        await elsewhere(plane, first)
        assert await ask(plane, another, "Sails?", model=model) == first, model


async def test_a_new_incarnation_holds_nothing(plane: ControlPlane) -> None:
    await fleet(plane, *PLANES)
    first = await ask(plane, SYSTEM, "Roses?")
    await fleet(plane, first, incarnation=2)
    for name in PLANES:
        await report(plane, name, 1 + (name == first), **IDLE)
    await report(plane, first, 2, **BEHIND)
    assert await ask(plane, SYSTEM, "Tulips?") != first


async def test_tickets_expect_what_is_left_to_compute(plane: ControlPlane) -> None:
    joined = await plane.join("dp-0")
    await report(plane, "dp-0")
    keys = {key.key_id: key.key for key in joined.ticket_keys}

    async def expected_s() -> float:
        options: AdmitOptions = {"prompt": SYSTEM + "?"}
        placed = await plane.admission.Admit(admit_request("", options, tenant=""))
        await plane.until_written()
        await report(plane, "dp-0")
        return tickets.genuine(placed.ticket, keys).expected_ttft_s

    # 2,001 characters are 500 tokens, of which 7 pieces of 64 tokens were sent.
    assert await expected_s() == pytest.approx(0.01 + 0.5, abs=0.01)
    assert await expected_s() == pytest.approx(0.01 + 0.5 - 7 * 0.064, abs=0.01)


async def test_what_was_foretold_is_counted(redis_url: str) -> None:
    async with (
        running(redis_url, metrics_port=0) as plane,
        httpx.AsyncClient(timeout=60) as http,
    ):
        await fleet(plane, *PLANES)
        first = await ask(plane, SYSTEM, "Roses?")
        await elsewhere(plane, first)
        assert await ask(plane, SYSTEM, "Tulips?") == first
        await report(plane, first, waits=[fleet_pb2.ExpectedWait(wait_s=5000.0)])
        assert await ask(plane, SYSTEM, "Lilies?") != first
        await plane.admission.Admit(pb.AdmitRequest())
        seen = Metrics((await http.get(plane.metrics_url)).text)
    counted = "chorale_control_plane_prefix_placements_total"
    for outcome in ("hit", "elsewhere", "none"):
        assert seen(counted, outcome=outcome) == 1, outcome
    assert seen("chorale_control_plane_expected_cached_tokens_total") == len(SYSTEM) / 4


async def test_redis_is_asked_once_and_told_behind_the_back(
    redis_server: EmbeddedRedis, plane: ControlPlane
) -> None:
    await fleet(plane, *PLANES)
    looked_before = _calls(redis_server, "zmscore")
    await plane.admission.Admit(pb.AdmitRequest())
    await plane.until_written()
    assert _calls(redis_server, "zmscore") == looked_before, "without hashes nothing is paid"
    assert not _keys(redis_server)
    before, began_s = _calls(redis_server, "evalsha"), time.monotonic()
    for _ in range(10):
        await ask(plane, SYSTEM, "Roses?")
    # Ticks of the predictor, and demand ten times a second, come between.
    between = 3 + 12 * (time.monotonic() - began_s)
    assert _calls(redis_server, "evalsha") - before <= 20 + between
    assert _calls(redis_server, "zmscore") - looked_before == 10 * len(PLANES)


async def test_what_redis_holds_is_keyed_and_goes_by_itself(
    redis_server: EmbeddedRedis, plane: ControlPlane
) -> None:
    await fleet(plane, "dp-0")
    await ask(plane, SYSTEM, "Roses?")
    (key,) = _keys(redis_server)
    assert key == "{chorale}:sent_prefixes:dp-0:00000000000000000001"
    for _ in range(2):
        left_ms = int(send(redis_server, f"PTTL {key}").decode().strip(":\r\n"))
        assert LEASE_S < left_ms / 1000 <= 2 * LEASE_S, "twice the lease, from the last heartbeat"
        send(redis_server, f"PEXPIRE {key} 60000")
        await report(plane, "dp-0")
    held = send(redis_server, f"ZRANGE {key} 0 -1").decode()
    request = admit_request("", {"messages": [{"role": "system", "content": SYSTEM}]}, tenant="")
    marks = PrefixKey("test-fleet-token").keyed("default", _told(request)).marks
    assert all(mark in held for mark in marks)
    for other in (PrefixKey("another"), PrefixKey("")):
        assert not any(mark in held for mark in other.keyed("default", _told(request)).marks)
    assert "garden" not in held
    leave = fleet_pb2.LeaveRequest(data_plane_id="dp-0", incarnation=1)
    await plane.fleet.Leave(leave, metadata=AUTHORIZATION)
    assert not _keys(redis_server)


async def test_no_more_is_kept_than_there_is_room_for(
    redis_server: EmbeddedRedis, redis_url: str, plane: ControlPlane
) -> None:
    await plane.join("dp-0")
    store = Store(redis_url, timeout_s=60.0)
    reservations = Reservations(store)
    reservations.start()
    try:
        for batch in range(21):
            for each in range(20):
                # One that is as large as 4,096 allow, at a time; 21,000 in all.
                members = [f"{batch}-{each}-{number}" for number in range(50)]
                reservations.add("dp-0", 1, None, members)
            while reservations.unwritten("dp-0"):
                await asyncio.sleep(0.005)
        reservations.add("gone", 1, None, ["x"])
        while reservations.unwritten("gone"):
            await asyncio.sleep(0.005)
    finally:
        await reservations.stop()
        await store.close()
    (key,) = _keys(redis_server)
    assert send(redis_server, f"ZCARD {key}") == b":20000\r\n"
    assert send(redis_server, f"ZSCORE {key} 0-0-0") == b"$-1\r\n", "the oldest are gone"
    assert send(redis_server, f"ZSCORE {key} 20-19-49") != b"$-1\r\n"


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        ({"hashes": range(MAX_PREFIXES + 1), "lengths": range(1, MAX_PREFIXES + 2)}, "65"),
        ({"hashes": [1, 2], "lengths": [3]}, "2 hashes and 1 lengths"),
        ({"hashes": [1], "lengths": [0]}, "length 0"),
        ({"hashes": [1, 2], "lengths": [9, 8]}, "length 8"),
    ],
)
async def test_refusals(plane: ControlPlane, prefixes: dict[str, Any], said: str) -> None:
    await plane.join()
    request = pb.AdmitRequest(prompt_prefixes=pb.PromptPrefixes(**prefixes))
    error = await failure(plane.admission.Admit(request))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PREFIXES_INVALID")
    assert said in error.message and error.metadata["field"] == "prompt_prefixes"


def _told(request: pb.AdmitRequest) -> ToldPrefixes:
    return ToldPrefixes(request.prompt_prefixes.hashes, request.prompt_prefixes.lengths)


def _calls(server: EmbeddedRedis, command: str) -> int:
    for line in send(server, "INFO commandstats").decode().splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


def _keys(server: EmbeddedRedis) -> list[str]:
    reply = send(server, "KEYS {chorale}:sent_prefixes:*").decode().split("\r\n")
    return [each for each in reply if each.startswith("{chorale}")]
