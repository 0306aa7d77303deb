"""A gateway that asks for API keys: what each scope opens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale import AsyncClient
from chorale.v1 import adapter_registry_pb2, admission_pb2, fleet_pb2, tenant_pb2
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.access.needed import PATHS, of_method
from controlplane.gateway.access.scope import Scope
from controlplane.gateway.http.app import make_app
from controlplane.gateway.options import GatewayOptions
from tests.gateway.http_errors import COMPLETION
from tests.gateway.key_callers import complete, http_status, refusal
from tests.helpers.fake_fleet import FakeFleet, RunningGateway
from tests.helpers.waiting import eventually

CALLS: dict[str, tuple[Callable[[AsyncClient], Any], str]] = {
    "generate": (complete, "user-key proxy-key"),
    "admit": (lambda client: client.admit("pirate"), "user-key proxy-key"),
    "tokenize": (lambda client: client.tokenize("x"), "user-key proxy-key"),
    "base models": (
        lambda client: client.base_models(),
        "user-key proxy-key watch-key admin-key",
    ),
    "list": (lambda client: client.adapters.get("pirate"), "watch-key admin-key"),
    "data planes": (lambda client: client.data_planes(), "watch-key admin-key"),
    "limits": (lambda client: client.tenants("").list(), "watch-key admin-key"),
    "register": (lambda client: client.adapters.register("new", "/a"), "admin-key"),
    "remove": (lambda client: client.adapters.remove("pirate"), "admin-key"),
    "set limits": (lambda client: client.tenants("").set("a"), "admin-key"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_what_each_scope_opens_over_grpc(guarded: RunningGateway, name: str) -> None:
    call, allowed = CALLS[name]
    for key in ("user-key", "proxy-key", "watch-key", "admin-key"):
        expected = "" if key in allowed.split() else "API_KEY_SCOPE"
        assert await refusal(call, guarded.address, key) == expected, key
    assert await refusal(call, guarded.address, "") == "API_KEY_MISSING"
    assert await refusal(call, guarded.address, "guessed") == "API_KEY_UNKNOWN"
    assert await refusal(call, guarded.address, "old-key") == "API_KEY_EXPIRED"


async def test_what_each_scope_opens_over_http(guarded: RunningGateway) -> None:
    load = {"lora_name": "poet", "lora_path": "/adapters/poet"}
    opened = {
        ("GET", "/v1/models"): ("user-key watch-key admin-key", {}),
        ("GET", "/v1/models/base"): ("user-key watch-key admin-key", {}),
        ("GET", "/metrics"): ("watch-key admin-key", {}),
        ("POST", "/v1/completions"): ("user-key", {"json": COMPLETION}),
        ("POST", "/generate"): ("user-key", {"json": {"inputs": "x"}}),
        ("POST", "/v1/load_lora_adapter"): ("admin-key", {"json": load}),
    }
    for (method, path), (allowed, rest) in opened.items():
        for key in ("user-key", "watch-key", "admin-key"):
            status = await http_status(guarded, key, method, path, **rest)
            assert status == (200 if key in allowed.split() else 403), (path, key)
        for key in ("", "guessed", "old-key"):
            assert await http_status(guarded, key, method, path, **rest) == 401, (path, key)
    assert await http_status(guarded, "", "GET", "/health") == 200
    assert await http_status(guarded, "", "GET", "/nothing") == 401
    assert await http_status(guarded, "user-key", "GET", "/nothing") == 404


ODD_PATHS = (
    ("GET", "/metrics%0A", {}),
    ("GET", "/metrics%0D%0A", {}),
    ("POST", "/v1/load_lora_adapter%0A", {"json": {"lora_name": "a", "lora_path": "/a"}}),
    ("POST", "/v1/unload_lora_adapter%0a", {"json": {"lora_name": "pirate"}}),
    ("GET", "//metrics", {}),
    ("GET", "/METRICS", {}),
    ("GET", "/metrics;/", {}),
    ("GET", "/metrics%00", {}),
    ("GET", "/metrics%2F", {}),
)


@pytest.mark.parametrize(("method", "path", "rest"), ODD_PATHS)
async def test_odd_spellings_of_a_path_open_nothing(
    guarded: RunningGateway, fleet: FakeFleet, method: str, path: str, rest: Any
) -> None:
    for key in ("user-key", "admin-key"):
        assert await http_status(guarded, key, method, path, **rest) in (307, 403, 404, 405), key
    assert "pirate" in fleet.adapters and "a" not in fleet.adapters


async def test_the_route_says_what_is_needed_and_not_the_paths_text(
    guarded: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx.AsyncClient(base_url=guarded.http_url, timeout=60) as http:
        for key, status in (("user-key", 403), ("watch-key", 200)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await http.get("/%6Detrics", headers=headers)).status_code == status
        monkeypatch.delitem(PATHS, "/metrics")  # a new route, unknown there: it needs the most
        for key, status in (("user-key", 403), ("watch-key", 403), ("admin-key", 200)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await http.get("/metrics", headers=headers)).status_code == status


SERVED = (
    adapter_registry_pb2.DESCRIPTOR.services_by_name["AdapterRegistryService"],
    admission_pb2.DESCRIPTOR.services_by_name["AdmissionService"],
    fleet_pb2.DESCRIPTOR.services_by_name["FleetService"],
    pb.DESCRIPTOR.services_by_name["InferenceService"],
    tenant_pb2.DESCRIPTOR.services_by_name["TenantService"],
)
GENERATING = {"Admit", "Generate", "Tokenize"}
READING = {"GetUpload", "GetAdapter", "ListAdapters", "ListDataPlanes", "ListDemand"}
READING |= {"GetTenant", "ListTenants"}


def test_what_each_method_needs() -> None:
    for service in SERVED:
        for method in service.methods:
            expected = {Scope.MANAGE}
            if method.name in GENERATING:
                expected = {Scope.GENERATE}
            elif method.name in READING:
                expected = {Scope.MANAGE, Scope.OBSERVE}
            elif method.name == "ListBaseModels":
                expected = set(Scope)
            assert of_method(f"/{service.full_name}/{method.name}") == expected, method.name
    assert of_method("/chorale.v1.NewService/Do") == {Scope.MANAGE}


async def test_what_each_route_needs(guarded: RunningGateway) -> None:
    everybody = {"", "user-key", "watch-key", "admin-key"}
    opened = {
        "/health": everybody,
        "/metrics": {"watch-key", "admin-key"},
        "/v1/models": everybody - {""},
        "/v1/models/{name:path}": everybody - {""},
        "/info": everybody - {""},
        "/v1/load_lora_adapter": {"admin-key"},
        "/v1/unload_lora_adapter": {"admin-key"},
    }
    async with httpx.AsyncClient(base_url=guarded.http_url, timeout=60) as http:
        for path in PATHS:
            for key in everybody:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                status = (await http.put(path, headers=headers)).status_code
                allowed = key in opened.get(path, {"user-key"})
                assert status == (405 if allowed else 403 if key else 401), (path, key)


async def test_health_is_for_everybody(guarded: RunningGateway) -> None:
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def serving() -> bool:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            return answer.status == health_pb2.HealthCheckResponse.SERVING

        await eventually(serving)


async def test_every_route_says_what_it_needs() -> None:
    none: Any = None
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        app = make_app(none, none, channel, none, none, none, GatewayOptions(), None)
    assert {getattr(route, "path", "") for route in app.routes} == set(PATHS)
