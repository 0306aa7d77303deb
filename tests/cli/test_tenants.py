from __future__ import annotations

import json

import pytest

from chorale.errors import NotFoundError
from chorale.v1 import tenant_pb2 as pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway

ACME = pb.Tenant(
    name="acme",
    limits=pb.TenantLimits(requests_per_minute=6000, request_burst=10, max_priority=-2),
)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORALE_FLEET_TOKEN", "secret")


def test_set(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["SetTenant"] = lambda request: pb.SetTenantResponse(tenant=request.tenant)
    arguments = ["--requests-per-minute", "6000", "--burst", "10", "--max-priority", "-2"]
    result = chorale("tenants", "set", "acme", *arguments)
    assert result.exit_code == 0, result.stderr
    assert gateway.requests == [pb.SetTenantRequest(tenant=ACME)]
    assert gateway.metadata[0]["authorization"] == "Bearer secret"
    assert result.stdout == "acme: 6,000 requests per minute, request burst 10, max priority -2\n"
    result = chorale(
        "tenants", "set", "*", "--tokens-per-minute", "0", "--token-burst", "7", "--json"
    )
    limits = gateway.requests[-1].tenant.limits
    assert {each.name: value for each, value in limits.ListFields()} == {
        "tokens_per_minute": 0,
        "token_burst": 7,
    }
    assert json.loads(result.stdout)["tenant"] == {
        "name": "*",
        "limits": {
            "requests_per_minute": None,
            "request_burst": None,
            "tokens_per_minute": 0,
            "token_burst": 7,
            "max_priority": None,
            "max_running": None,
        },
    }
    assert chorale("tenants", "set", "a").stdout == "a: no limits\n"
    for wrong in (["--burst", "0"], ["--max-priority", "11"], ["--tokens-per-minute", "-1"]):
        assert chorale("tenants", "set", "a", *wrong).exit_code == 2


def test_list(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["ListTenants"] = pb.ListTenantsResponse(tenants=[ACME])
    shown = chorale("tenants", "list").stdout
    for text in ("acme", "6,000", "10", "-2", "requests/min"):
        assert text in shown
    (view,) = json.loads(chorale("tenants", "list", "--json").stdout)["tenants"]
    assert (view["name"], view["limits"]["requests_per_minute"]) == ("acme", 6000)
    gateway.answers["ListTenants"] = pb.ListTenantsResponse()
    assert chorale("tenants", "list").stdout == "no tenant has limits\n"


def test_show(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["GetTenant"] = pb.GetTenantResponse(
        tenant=ACME, is_default=True, available_requests=2.25
    )
    shown = chorale("tenants", "show", "acme").stdout
    assert gateway.requests == [pb.GetTenantRequest(name="acme")]
    assert "requests now" in shown and "2.2" in shown and "(those of '*')" in shown
    assert "tokens now" not in shown
    view = json.loads(chorale("tenants", "show", "acme", "--json").stdout)["tenant"]
    assert (view["is_default"], view["available"]) == (True, {"requests": 2.25, "tokens": None})


def test_remove(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["RemoveTenant"] = pb.RemoveTenantResponse()
    assert chorale("tenants", "remove", "acme").stdout == "removed the limits of acme\n"
    assert gateway.requests == [pb.RemoveTenantRequest(name="acme")]
    assert json.loads(chorale("tenants", "remove", "acme", "--json").stdout) == {"removed": "acme"}
    gateway.answers["RemoveTenant"] = NotFoundError("TENANT_NOT_FOUND", "no such tenant")
    assert chorale("tenants", "remove", "acme").exit_code == 3


def test_without_a_token_nothing_is_asked(
    chorale: Chorale, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delenv("CHORALE_FLEET_TOKEN")
    result = chorale("tenants", "list", "--data-dir", str(tmp_path))
    assert result.exit_code == 4 and "FLEET_TOKEN_MISSING" in result.stderr
    assert gateway.requests == []
