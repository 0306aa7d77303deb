"""A gateway that asks for API keys: who gets in, for what, and as whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chorale import AsyncClient
from chorale.api_key import api_key_of
from chorale.errors import ChoraleError, PermissionDeniedError, UnauthenticatedError
from chorale.v1 import adapter_registry_pb2, admission_pb2, fleet_pb2, tenant_pb2
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.errors import OptionError
from controlplane.gateway.access import watched
from controlplane.gateway.access.needed import PATHS, of_method
from controlplane.gateway.access.scope import Scope
from controlplane.gateway.http.app import make_app
from controlplane.gateway.options import GatewayOptions
from tests.gateway.http_errors import COMPLETION, error_of
from tests.helpers.api_keys import entry, write_keys
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually

KEYS = (
    entry("user-key"),
    entry("proxy-key", "*"),
    entry("watch-key", "ops", "observe"),
    entry("admin-key", "ops", "manage"),
    entry("old-key", expires="2020-01-01T00:00:00Z"),
)


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watched, "POLL_S", 0.01)
    return write_keys(tmp_path / "keys.json", *KEYS)


@pytest_asyncio.fixture
async def guarded(fleet: FakeFleet, key_file: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(fleet, api_keys_file=key_file) as gateway:
        yield gateway


async def refusal(call: Callable[[AsyncClient], Any], address: str, key: str) -> str:
    """The reason why `call` is refused with `key`; empty when it is not."""
    async with AsyncClient(address, api_key=key) as client:
        try:
            await call(client)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            return error.reason
        except ChoraleError:
            pass  # the fake control plane's: it was let in
    return ""


async def http_status(
    gateway: RunningGateway, key: str, method: str, path: str, **rest: Any
) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=gateway.http_url, headers=headers, timeout=60) as http:
        return (await http.request(method, path, **rest)).status_code


CALLS: dict[str, tuple[Callable[[AsyncClient], Any], str]] = {
    "generate": (lambda client: client.complete("x", max_tokens=1), "user-key proxy-key"),
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


async def test_refusals_name_the_way_out(guarded: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=guarded.http_url, timeout=60) as http:
        answer = await http.post("/v1/completions", json=COMPLETION)
    error = error_of(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (error["type"], error["code"]) == ("authentication_error", "api_key_missing")
    assert "authorization: Bearer" in error["message"]
    async with AsyncClient(guarded.address, api_key="watch-key") as client:
        with pytest.raises(PermissionDeniedError, match=r"'watch-key'.*observe.*needs generate"):
            await client.complete("x")


async def test_the_key_says_the_tenant(guarded: RunningGateway, fleet: FakeFleet) -> None:
    for tenant in ("", "acme"):
        async with AsyncClient(guarded.address, api_key="user-key", tenant=tenant) as client:
            await client.complete("x", max_tokens=1)
            await client.admit("pirate")
    assert [admit.tenant for admit in fleet.admits] == ["acme"] * 4
    async with AsyncClient(guarded.address, api_key="user-key", tenant="other") as client:
        for call in (client.complete("x"), client.admit("x")):
            with pytest.raises(PermissionDeniedError, match=r"'other'.*'acme'") as raised:
                await call
            assert raised.value.reason == "TENANT_NOT_YOURS"
    async with AsyncClient(guarded.address, api_key="user-key", tenant="ACME") as client:
        with pytest.raises(PermissionDeniedError, match=r"'ACME'.*'acme'"):
            await client.admit("x")
    assert len(fleet.admits) == 4
    headers = {"authorization": "Bearer user-key", "x-chorale-tenant": "other"}
    async with httpx.AsyncClient(base_url=guarded.http_url, headers=headers, timeout=60) as http:
        error = error_of(await http.post("/v1/completions", json=COMPLETION), 403)
        scope = await http.get("/metrics")
    assert error["code"] == "tenant_not_yours"
    assert error_of(scope, 403)["code"] == "api_key_scope"
    assert "www-authenticate" not in scope.headers


async def test_a_key_for_any_tenant(guarded: RunningGateway, fleet: FakeFleet) -> None:
    async with AsyncClient(guarded.address, api_key="proxy-key") as client:
        await client.complete("x", max_tokens=1, tenant="other")
        await client.complete("x", max_tokens=1)
    async with AsyncClient(guarded.address, api_key="proxy-key", tenant="third") as client:
        await client.admit("pirate")
    assert [admit.tenant for admit in fleet.admits] == ["other", "", "third"]


async def test_admit_keeps_what_the_gateway_does_not_know(
    guarded: RunningGateway, fleet: FakeFleet
) -> None:
    async with AsyncClient(guarded.address, api_key="user-key") as client:
        await client.admit("pirate", routing_key="r", priority=-1)
    (admit,) = fleet.admits
    assert (admit.model, admit.routing_key, admit.priority) == ("pirate", "r", -1)
    path = "/chorale.v1.AdmissionService/Admit"
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        send = channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await send(b"\x0a\xff", metadata=(("x-chorale-api-key", "user-key"),), timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_key_goes_no_further(guarded: RunningGateway, fleet: FakeFleet) -> None:
    async with AsyncClient(guarded.address, api_key="user-key") as client:
        await client.complete("x", max_tokens=1)
    async with AsyncClient(guarded.address, api_key="admin-key") as client:
        with pytest.raises(ChoraleError):
            await client.adapters.remove("unknown")
        await client.tenants("fleet-token").set("a")
    assert fleet.metadata[-1]["authorization"] == "Bearer fleet-token"
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        listing = channel.unary_unary("/chorale.v1.AdapterRegistryService/ListAdapters")
        await listing(b"", metadata=(("authorization", "Bearer admin-key"),), timeout=10)
    assert await _answers(guarded.address, (("authorization", "Bearer user-key"),)) == "OK"
    both = (("x-chorale-api-key", "user-key"), ("authorization", "Bearer fleet-token"))
    assert await _answers(guarded.address, both) == "OK"
    assert all("authorization" not in metadata for metadata in fleet.planes[0].metadata)
    seen = [*fleet.metadata, *fleet.planes[0].metadata]
    assert seen
    for metadata in seen:
        assert not any("-key" in str(value) for value in metadata.values()), metadata


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Bearer user-key"),),
        (("authorization", "bearer   user-key"),),
        (("authorization", "Bearer guessed"), ("x-chorale-api-key", "user-key")),
    ],
)
async def test_where_a_key_may_stand(guarded: RunningGateway, metadata: Any) -> None:
    assert await _answers(guarded.address, metadata) == "OK"


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "user-key"),),
        (("authorization", "Basic user-key"),),
        (("authorization", "Bearer user-key"), ("authorization", "Bearer user-key")),
        (("x-chorale-api-key", "user-key"), ("x-chorale-api-key", "user-key")),
        (("x-chorale-api-key", ""), ("authorization", "Bearer user-key")),
        (
            ("x-chorale-api-key", "a"),
            ("x-chorale-api-key", "a"),
            ("authorization", "Bearer user-key"),
        ),
        (("x-chorale-api-key-bin", b"user-key"),),
        (("x-chorale-api-key", "user-key" * 1000),),
        (("x-chorale-api-key", "user key"),),
    ],
)
async def test_where_it_may_not(guarded: RunningGateway, metadata: Any) -> None:
    assert await _answers(guarded.address, metadata) == "UNAUTHENTICATED"


def test_no_key_is_longer() -> None:
    for length, expected in ((4096, 4096), (4097, 0)):
        assert len(api_key_of([("x-chorale-api-key", "k" * length)])) == expected


async def _answers(address: str, metadata: Any) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceServiceStub(channel)
        request = pb.GenerateRequest(prompt="x", sampling=pb.SamplingParameters(max_tokens=1))
        try:
            async for _ in stub.Generate(request, metadata=metadata, timeout=10):
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


async def test_the_openai_sdk(guarded: RunningGateway) -> None:
    base_url = f"{guarded.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="user-key", max_retries=0) as sdk:
        await sdk.completions.create(model="pirate", prompt="x", max_tokens=2)
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError, match="none that this gateway knows"):
            await sdk.completions.create(model="pirate", prompt="x", max_tokens=2)


async def test_a_changed_file_counts_at_once(guarded: RunningGateway, key_file: Path) -> None:
    ask = CALLS["generate"][0]

    async def refuses(key: str, reason: str) -> bool:
        return await refusal(ask, guarded.address, key) == reason

    async with AsyncClient(guarded.address, api_key="user-key") as client:
        running = client.generate("x", max_tokens=3)
        write_keys(key_file, entry("new-key"))
        await eventually(lambda: refuses("new-key", ""))
        assert await refuses("user-key", "API_KEY_UNKNOWN")
        assert [event async for event in running]  # what was let in goes on


async def test_a_broken_file_changes_nothing(
    guarded: RunningGateway, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask = CALLS["generate"][0]

    async def stale(value: float) -> bool:
        headers = {"authorization": "Bearer watch-key"}
        async with httpx.AsyncClient(timeout=60, headers=headers) as http:
            text = (await http.get(f"{guarded.http_url}/metrics")).text
        return f'chorale_gateway_stale_files{{file="api_keys"}} {value}' in text

    assert await stale(0.0)
    for break_it in (
        lambda: key_file.write_text("{"),
        lambda: write_keys(key_file, entry("user-key"), entry("user-key")),
        key_file.unlink,
    ):
        break_it()
        await eventually(lambda: stale(1.0))
        assert await refusal(ask, guarded.address, "user-key") == ""
    assert [one.levelname for one in caplog.records if "stays" in one.message] == ["ERROR"]
    write_keys(key_file, *KEYS)
    await eventually(lambda: stale(0.0))


async def test_refusals_are_counted(guarded: RunningGateway) -> None:
    for key in ("", "guessed", "guessed"):
        assert await http_status(guarded, key, "GET", "/v1/models") == 401
    headers = {"authorization": "Bearer watch-key"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        text = (await http.get(f"{guarded.http_url}/metrics")).text
    assert 'chorale_gateway_key_refusals_total{reason="API_KEY_MISSING"} 1.0' in text
    assert 'chorale_gateway_key_refusals_total{reason="API_KEY_UNKNOWN"} 2.0' in text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "keys"),
        ('{"keys": [{"name": "a"}]}', "sha256"),
        ('{"keys": [], "more": 1}', "more"),
        ([entry("a", scopes=[])], "scopes"),
        ([entry("a", scopes=["root"])], "root"),
        ([entry("a", sha256="A" * 64)], "sha256"),
        ([entry("a", "two words")], "tenant"),
        ([entry("a", name="")], "name"),
        ([entry("a", expires="2020-01-01T00:00:00")], "expires"),
        ([entry("a"), entry("b", name="a")], "keys[1].name"),
        ([entry("a"), entry("a", name="b")], "keys[1].sha256"),
    ],
)
async def test_a_file_that_does_not_serve_keeps_the_gateway_from_starting(
    fleet: FakeFleet, tmp_path: Path, content: Any, named: str
) -> None:
    path = tmp_path / "keys.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write_keys(path, *content)
    with pytest.raises(OptionError, match="api_keys_file") as raised:
        async with running_gateway(fleet, api_keys_file=path):
            pass
    assert named in raised.value.message


async def test_no_file_keeps_it_from_starting_too(fleet: FakeFleet, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file"):
        async with running_gateway(fleet, api_keys_file=tmp_path / "none"):
            pass
