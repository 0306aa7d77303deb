"""`--wait`: until an adapter is there, or why it will not be."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from chorale.errors import UnavailableError
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admin_pb2 as admin_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from controlplane.cli import waiting
from controlplane.cli.errors import BlockedError
from controlplane.cli.waiting import Look, Wish, look
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway, adapter

DIGEST = "1" * 64
FETCHING = admin_pb.AdapterLoading(
    digest=DIGEST,
    state="fetching",
    received_bytes=1 << 20,
    total_bytes=4 << 20,
    bytes_per_s=2048.0,
)


def answer(
    *loads: admin_pb.AdapterLoad,
    loading: tuple[admin_pb.AdapterLoading, ...] = (),
    **place: Any,
) -> admin_pb.ListAdapterLoadsResponse:
    return admin_pb.ListAdapterLoadsResponse(
        data_plane_id="dp-1",
        loads=loads,
        loading=loading,
        places=[admin_pb.AdapterPlace(digest=DIGEST, **place)],
    )


def wish(tier: waiting.TierName = "host", *, pinned: bool = False) -> Wish:
    return Wish("pirate@1", DIGEST, tier, pinned)


def failed(age_s: float) -> admin_pb.AdapterLoad:
    return admin_pb.AdapterLoad(reason="SOURCE_TIMEOUT", message="it hangs", age_s=age_s)


def test_where_it_is_decides() -> None:
    assert look(wish(), answer(in_host=True), 0.0).there
    assert look(wish(), answer(in_pool=True), 0.0).there
    assert look(wish("pool"), answer(in_pool=True), 0.0).there
    assert not look(wish("pool"), answer(in_host=True), 0.0).there
    assert not look(wish(), answer(on_disk=True), 0.0).there
    assert look(wish(), answer(), 0.1) == Look(False, "told")


def test_how_far_it_is() -> None:
    found = look(wish(), answer(failed(0.1), loading=(FETCHING,)), 9.0)
    assert found == Look(False, "fetching", 1 << 20, 4 << 20, 2048.0), "a later try goes on"


def test_a_failure_since_then_ends_it_and_an_older_one_does_not() -> None:
    assert not look(wish(), answer(failed(3.0)), 2.0).there
    with pytest.raises(BlockedError) as raised:
        look(wish(), answer(failed(1.0)), 2.0)
    assert raised.value.reason == "SOURCE_TIMEOUT" and "it hangs" in raised.value.message
    pin = look(wish(pinned=True), answer(failed(1.0), pin_waits_for="SOURCE_TIMEOUT"), 2.0)
    assert pin == Look(False, "tried again: SOURCE_TIMEOUT")


def test_no_room_is_told_once_there_was_time_to_place_it() -> None:
    loaded = admin_pb.AdapterLoad(age_s=6.0)
    assert look(wish(), answer(admin_pb.AdapterLoad(age_s=1.0)), 9.0).state == "placing"
    for case in (
        (wish(), answer(loaded)),
        (wish("pool"), answer(loaded, in_host=True)),
        (wish("pool"), answer(in_host=True)),
    ):
        assert not look(*case, 4.0).there
        with pytest.raises(BlockedError) as raised:
            look(*case, 7.0)
        assert raised.value.reason == "NO_ROOM"
    assert look(wish(), answer(), 100.0).state == "told", "it may be queued"


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(
        waiting, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep)
    )
    return made


@pytest.fixture
def scripted(
    gateway: ScriptedGateway, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> ScriptedGateway:
    """Two data planes; the adapter is fetched first and there at the third question."""
    monkeypatch.setenv("CHORALE_FLEET_TOKEN", "secret")
    planes = [
        fleet_pb.DataPlane(data_plane_id=name, endpoint=gateway.address) for name in ("dp-1", "x")
    ]
    asked = 0

    def loads(request: admin_pb.ListAdapterLoadsRequest) -> admin_pb.ListAdapterLoadsResponse:
        nonlocal asked
        asked += 1
        assert list(request.digests) == [DIGEST]
        return answer(loading=(FETCHING,)) if asked < 3 else answer(in_host=True)

    gateway.answers |= {
        "DirectAdapter": fleet_pb.DirectAdapterResponse(
            adapter="pirate@1", data_plane_ids=["dp-1"]
        ),
        "ListDataPlanes": fleet_pb.ListDataPlanesResponse(data_planes=planes),
        "GetAdapter": registry_pb.GetAdapterResponse(adapter=adapter("pirate"), resolved_version=1),
        "RegisterAdapter": registry_pb.RegisterAdapterResponse(
            adapter=adapter("pirate"), version=adapter("pirate").versions[0], created=True
        ),
        "ListAdapterLoads": loads,
    }
    return gateway


def test_prefetch_waits(chorale: Chorale, scripted: ScriptedGateway) -> None:
    result = chorale("adapters", "prefetch", "pirate", "--wait")
    assert result.exit_code == 0, result.stderr
    told, there = result.stdout.splitlines()
    assert told == "prefetch pirate@1: told dp-1"
    assert there == "pirate@1 is in host memory of dp-1 after 0.6 s"
    view = json.loads(chorale("adapters", "pin", "pirate", "--wait", "--json").stdout)
    assert view["data_planes"] == ["dp-1"] and view["waited_s"] == 0.0


def test_add_waits(chorale: Chorale, scripted: ScriptedGateway) -> None:
    result = chorale("adapters", "add", "pirate", "/a", "--wait")
    assert result.exit_code == 0, result.stderr
    added, there = result.stdout.splitlines()
    assert added.startswith("added pirate@1 ") and there.startswith("pirate@1 is in host memory")
    (direct,) = [each for each in scripted.requests if type(each) is fleet_pb.DirectAdapterRequest]
    assert (direct.name, direct.action) == ("pirate@1", fleet_pb.ADAPTER_ACTION_PREFETCH)
    view = json.loads(chorale("adapters", "add", "pirate", "/a", "--wait", "--json").stdout)
    assert view["created"] is True


def test_it_waits_no_longer_than_told(
    chorale: Chorale, scripted: ScriptedGateway, clock: Clock
) -> None:
    scripted.answers["ListAdapterLoads"] = answer(pin_waits_for="PIN_POOL_FULL")
    began_s = clock.now_s
    result = chorale("adapters", "pin", "pirate", "--wait", "--wait-timeout", "30")
    assert result.exit_code == 5 and "NOT_IN_TIME" in result.stderr
    assert clock.now_s - began_s == pytest.approx(30)
    assert "PIN_POOL_FULL" in result.stderr and "dp-1" in result.stderr


def test_a_data_plane_that_starts_its_engine_again_is_waited_for(
    chorale: Chorale, scripted: ScriptedGateway
) -> None:
    there = scripted.answers["ListAdapterLoads"]
    lost = [UnavailableError("ENGINE_LOST", "the engine exited", retry_after_s=1.0)] * 2
    scripted.answers["ListAdapterLoads"] = lambda request: lost.pop() if lost else there(request)
    result = chorale("adapters", "prefetch", "pirate", "--wait")
    assert result.exit_code == 0 and "in host memory of dp-1" in result.stdout
    scripted.answers["ListAdapterLoads"] = UnavailableError("ENGINE_LOST", "the engine exited")
    result = chorale("adapters", "prefetch", "pirate", "--wait", "--wait-timeout", "30")
    assert result.exit_code == 5 and "does not answer" in result.stderr
    assert "NOT_IN_TIME" in result.stderr


def test_nobody_is_waited_for_where_nobody_was_told(
    chorale: Chorale, scripted: ScriptedGateway
) -> None:
    scripted.answers["DirectAdapter"] = fleet_pb.DirectAdapterResponse(adapter="pirate@1")
    assert "none is live" in chorale("adapters", "prefetch", "pirate", "--wait").stdout
    assert "nowhere yet" in chorale("adapters", "add", "pirate", "/a", "--wait").stdout


def test_a_terminal_sees_a_line_for_each_data_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with waiting._shown(quiet=False) as show:
        show("dp-[1]\x1b", look(wish(), answer(loading=(FETCHING,)), 1.0))
    text = terminal.getvalue()
    assert "dp-[1] fetching" in text and "2.0 KiB/s" in text
    assert "1.0/4.2 MB" in text
