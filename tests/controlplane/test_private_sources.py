"""Adapters from private sources: who may use them, and who may not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chorale.source_token import KEY
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2
from controlplane.admission.source_access import SourceAccess
from storage.errors import SourceAccessError
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from storage.sources import Access
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.web import Web, serving


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


@pytest.fixture
async def plane(redis_url: str, web: Web) -> AsyncIterator[ControlPlane]:
    options: dict[str, Any] = {"allowed_sources": [web.url], "private_hosts": [web.host]}
    async with running(redis_url, source_check_ttl_s=0.0, **options) as made:
        await made.join(max_running=4)
        yield made


def put(web: Web, folder: str, directory: Path, token: str) -> str:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        web.put(f"/{folder}/{name}", (directory / name).read_bytes(), token=token)
    return f"{web.url}/{folder}"


def bearing(token: str) -> tuple[tuple[str, str], ...]:
    return ((KEY, token),) if token else ()


async def register(plane: ControlPlane, name: str, source: str, token: str) -> Any:
    request = registry_pb.RegisterAdapterRequest(name=name, source=source)
    return await plane.registry.RegisterAdapter(request, metadata=bearing(token))


async def admit(plane: ControlPlane, model: str, token: str) -> Any:
    request = admission_pb2.AdmitRequest(model=model)
    return await plane.admission.Admit(request, metadata=bearing(token))


def claims_of(response: Any) -> admission_pb2.TicketClaims:
    signed = admission_pb2.SignedTicket.FromString(response.ticket)
    return admission_pb2.TicketClaims.FromString(signed.claims)


async def test_one_content_two_sources_two_tokens(
    plane: ControlPlane, web: Web, tmp_path: Path
) -> None:
    """Who may read neither gets neither; a token opens its own source's adapter, no other."""
    made = make_adapter_dir(tmp_path / "a")
    one, two = put(web, "one", made, "token-1"), put(web, "two", made, "token-2")
    assert (await failure(register(plane, "x", one, ""))).reason == "SOURCE_ACCESS_DENIED"
    assert (await failure(register(plane, "x", one, "token-2"))).reason == "SOURCE_ACCESS_DENIED"
    first = await register(plane, "voice-1", one, "token-1")
    second = await register(plane, "voice-2", two, "token-2")
    assert first.version.digest == second.version.digest
    assert first.version.private and second.version.private
    for name, good, bad in (("voice-1", "token-1", "token-2"), ("voice-2", "token-2", "token-1")):
        claims = claims_of(await admit(plane, name, good))
        assert claims.adapter_source_token == good
        error = await failure(admit(plane, name, bad))
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "SOURCE_ACCESS_DENIED")
        error = await failure(admit(plane, name, ""))
        assert (error.code.name, error.reason) == ("PERMISSION_DENIED", "SOURCE_TOKEN_MISSING")
        assert good not in error.message
    await admit(plane, "tiny/llama", "whatever")


async def test_it_is_checked_each_time(plane: ControlPlane, web: Web, tmp_path: Path) -> None:
    source = put(web, "a", make_adapter_dir(tmp_path / "a"), "good")
    await register(plane, "voice", source, "good")
    await admit(plane, "voice", "good")
    web.pages[f"/a/{CONFIG_NAME}"].token = "another"  # revoked
    assert (await failure(admit(plane, "voice", "good"))).reason == "SOURCE_ACCESS_DENIED"
    web.pages[f"/a/{CONFIG_NAME}"].token = "good"
    await admit(plane, "voice", "good")
    assert len(web.seen(f"/a/{CONFIG_NAME}")) == 1 + 3  # the registration's own, too


async def test_a_public_adapter_never_carries_a_token(
    plane: ControlPlane, web: Web, tmp_path: Path
) -> None:
    source = put(web, "a", make_adapter_dir(tmp_path / "a"), "")
    done = await register(plane, "voice", source, "")
    assert not done.version.private
    assert claims_of(await admit(plane, "voice", "mine")).adapter_source_token == ""
    assert len(web.seen(f"/a/{CONFIG_NAME}")) == 1  # the registration's


async def test_verify_needs_the_token_too(plane: ControlPlane, web: Web, tmp_path: Path) -> None:
    source = put(web, "a", make_adapter_dir(tmp_path / "a"), "good")
    await register(plane, "voice", source, "good")
    request = registry_pb.VerifyAdapterRequest(name="voice")
    error = await failure(plane.registry.VerifyAdapter(request))
    assert error.reason == "SOURCE_ACCESS_DENIED"
    assert (await plane.registry.VerifyAdapter(request, metadata=bearing("good"))).matches
    changed = make_adapter_dir(tmp_path / "b", seed=9)
    put(web, "a", changed, "good")
    assert not (await plane.registry.VerifyAdapter(request, metadata=bearing("good"))).matches


@pytest.mark.parametrize("token", ["a b", "x" * 5000])
async def test_malformed_tokens(plane: ControlPlane, token: str) -> None:
    error = await failure(admit(plane, "tiny/llama", token))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "SOURCE_TOKEN_INVALID")


async def test_a_yes_holds_for_its_time_a_no_never() -> None:
    asked: list[tuple[str, str]] = []
    good = {"t"}
    now = 0.0

    class Checker:
        async def check(self, uri: str, access: Access) -> None:
            asked.append((uri, access.token))
            if access.token not in good:
                raise SourceAccessError("no")

    access = SourceAccess(Checker(), ttl_s=10.0, clock=lambda: now)
    for _ in range(2):
        await access.require("a", "t")
        with pytest.raises(SourceAccessError):
            await access.require("a", "u")
    await access.require("b", "t")  # another source is another question
    assert asked == [("a", "t"), ("a", "u"), ("a", "u"), ("b", "t")]
    good.clear()
    await access.require("a", "t")
    now = 10.0
    with pytest.raises(SourceAccessError):
        await access.require("a", "t")
    with pytest.raises(SourceAccessError) as caught:
        await access.require("a", "")
    assert caught.value.reason == "SOURCE_TOKEN_MISSING"


async def test_a_private_adapter_is_no_component(
    plane: ControlPlane, web: Web, tmp_path: Path
) -> None:
    """Neither by its name nor by a recipe that reads the same content elsewhere."""
    made = make_adapter_dir(tmp_path / "a")
    done = await register(plane, "voice", put(web, "private", made, "good"), "good")
    merge = registry_pb.MergeAdaptersRequest(
        name="mix", components=[registry_pb.MergeComponent(adapter="voice", weight=1.0)]
    )
    for token in ("", "good"):
        error = await failure(plane.registry.MergeAdapters(merge, metadata=bearing(token)))
        assert error.reason == ("TOKEN_UNSUPPORTED" if token else "MERGE_COMPONENT_PRIVATE")
    public = put(web, "public", made, "")
    recipe = f"merge:cat?of=voice@1*1.0*{done.version.digest}*{public}"
    error = await failure(register(plane, "mix", recipe, ""))
    assert error.reason == "MERGE_COMPONENT_PRIVATE"
    web.requests.clear()
    private = recipe.replace("public", "private")
    for token in ("", "good"):
        error = await failure(register(plane, "mix", private, token))
        assert error.reason == "MERGE_COMPONENT_PRIVATE" and not web.requests, "nothing is read"
    await register(plane, "open", public, "")
    of_open = recipe.replace("voice@1", "open@1")
    assert (await failure(register(plane, "mix", of_open, "good"))).reason == "TOKEN_UNSUPPORTED"
