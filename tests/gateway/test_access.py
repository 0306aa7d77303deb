"""A gateway that asks for API keys: who gets in, and as whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from chorale import AsyncClient
from chorale.api_key import api_key_of
from chorale.errors import ChoraleError, PermissionDeniedError
from chorale.v1 import inference_pb2 as pb
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.errors import OptionError
from tests.gateway.http_errors import COMPLETION, error_of
from tests.gateway.key_callers import KEYS, complete, http_status, refusal
from tests.helpers.api_keys import entry, write_keys
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually


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
    async def refuses(key: str, reason: str) -> bool:
        return await refusal(complete, guarded.address, key) == reason

    async with AsyncClient(guarded.address, api_key="user-key") as client:
        running = client.generate("x", max_tokens=3)
        write_keys(key_file, entry("new-key"))
        await eventually(lambda: refuses("new-key", ""))
        assert await refuses("user-key", "API_KEY_UNKNOWN")
        assert [event async for event in running]  # what was let in goes on


async def test_a_broken_file_changes_nothing(
    guarded: RunningGateway, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
        assert await refusal(complete, guarded.address, "user-key") == ""
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
