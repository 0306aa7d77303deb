from __future__ import annotations

import json

import pytest

from chorale.v1 import fleet_pb2 as pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, gateway: ScriptedGateway) -> None:
    monkeypatch.setenv("CHORALE_FLEET_TOKEN", "secret")
    gateway.answers["DirectAdapter"] = pb.DirectAdapterResponse(
        adapter="pirate@2", data_plane_ids=["dp-1", "dp-2"]
    )


def test_prefetch(chorale: Chorale, gateway: ScriptedGateway) -> None:
    result = chorale("adapters", "prefetch", "pirate", "--tier", "pool", "--data-plane", "dp-1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "prefetch pirate@2: told dp-1, dp-2\n"
    (request,) = gateway.requests
    assert request == pb.DirectAdapterRequest(
        name="pirate",
        action=pb.ADAPTER_ACTION_PREFETCH,
        tier=pb.ADAPTER_TIER_POOL,
        data_plane_id="dp-1",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pin", "p"], {"action": pb.ADAPTER_ACTION_PIN, "tier": pb.ADAPTER_TIER_HOST}),
        (["unpin", "p"], {"action": pb.ADAPTER_ACTION_UNPIN}),
        (
            ["unload", "p", "--within", "1.5"],
            {"action": pb.ADAPTER_ACTION_UNLOAD, "within": {"seconds": 1, "nanos": 500_000_000}},
        ),
        (["unload", "p", "--within", "0"], {"action": pb.ADAPTER_ACTION_UNLOAD, "within": {}}),
    ],
)
def test_the_others(
    chorale: Chorale, gateway: ScriptedGateway, arguments: list[str], expected: dict[str, object]
) -> None:
    result = chorale("adapters", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "adapter": "pirate@2",
        "action": arguments[0],
        "data_planes": ["dp-1", "dp-2"],
    }
    assert gateway.requests == [pb.DirectAdapterRequest(name="p", **expected)]


def test_without_a_token_nothing_is_asked(
    chorale: Chorale,
    gateway: ScriptedGateway,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.delenv("CHORALE_FLEET_TOKEN")
    result = chorale(
        "adapters", "pin", "pirate", "--data-dir", str(tmp_path_factory.mktemp("empty"))
    )
    assert result.exit_code == 4 and "FLEET_TOKEN_MISSING" in result.stderr
    assert gateway.requests == []
