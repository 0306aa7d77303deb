"""More data planes, and more adapters on them, than there may be: who is beyond is told so."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from chorale.v1 import admission_pb2
from chorale.v1 import fleet_pb2 as pb
from controlplane.fleet import fleet
from controlplane.fleet.checks import MAX_DIGESTS
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure, running


def _digests(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fleet, "MAX_DATA_PLANES", 2)
    monkeypatch.setattr(fleet, "MAX_LISTED_DIGESTS", 5)
    yield


@pytest.mark.usefixtures("few")
async def test_data_planes(plane: ControlPlane) -> None:
    await plane.join("dp-0")
    await plane.join("dp-1", max_running=4)
    error = await failure(plane.join("dp-2"))
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_DATA_PLANES")
    assert "'dp-2'" in error.message and error.retry_after_s
    await plane.join("dp-1", incarnation=2)  # it has a place
    await plane.admission.Admit(admission_pb2.AdmitRequest())
    leaving = pb.LeaveRequest(data_plane_id="dp-0", incarnation=1)
    await plane.fleet.Leave(leaving, metadata=AUTHORIZATION)
    await plane.join("dp-2")


async def test_adapters_of_one(plane: ControlPlane) -> None:
    await plane.join("dp-0")
    await plane.join("dp-1")
    digests = _digests(MAX_DIGESTS + 1)
    large = pb.Residency(pool_digests=digests[:1], disk_digests=digests[1:])
    error = await failure(plane.beat("dp-0", residency=large))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "RESIDENCY_TOO_LARGE")
    del large.disk_digests[-1]
    await plane.beat("dp-0", residency=large)
    await plane.beat("dp-1", residency=pb.Residency(host_digests=digests[:1]))
    listed = await plane.fleet.ListDataPlanes(pb.ListDataPlanesRequest())
    assert [len(each.residency.disk_digests) for each in listed.data_planes] == [MAX_DIGESTS - 1, 0]


@pytest.mark.usefixtures("few")
async def test_adapters_in_one_list(redis_url: str) -> None:
    async with running(redis_url, metrics_port=0) as plane:
        for number in range(2):
            name = f"dp-{number}"
            await plane.join(name)
            await plane.beat(name, residency=pb.Residency(disk_digests=_digests(2 + number)))
        listed = await plane.fleet.ListDataPlanes(pb.ListDataPlanesRequest())
        assert [len(each.residency.disk_digests) for each in listed.data_planes] == [2, 3]
        await plane.beat("dp-1", residency=pb.Residency(disk_digests=_digests(4)))
        error = await failure(plane.fleet.ListDataPlanes(pb.ListDataPlanesRequest()))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RESIDENCY_TOO_LARGE")
        assert "without_residency" in error.message
        request = pb.ListDataPlanesRequest(without_residency=True)
        listed = await plane.fleet.ListDataPlanes(request)
        assert [each.data_plane_id for each in listed.data_planes] == ["dp-0", "dp-1"]
        assert not any(each.residency.disk_digests for each in listed.data_planes)
        async with httpx.AsyncClient() as http:
            page = await http.get(plane.metrics_url)
        assert "chorale_control_plane_data_planes 2.0" in page.text
