"""Every refusal of the registry: code, reason, and a message that names the way out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chorale import errors
from chorale.status import from_rpc_error
from chorale.v1 import adapter_registry_pb2 as pb
from controlplane.store import keys
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running
from tests.helpers.redis import send


@pytest.fixture
async def voices(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """`voice` with versions 1 and 2 (current), alias `prod` bound to 1."""
    await plane.join()
    for seed in (1, 2):
        await plane.register("voice", make_adapter_dir(tmp_path / str(seed), seed=seed))
    alias = pb.Alias(name="prod", adapter="voice", version=1)
    await plane.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    return plane


async def nothing_stored(plane: ControlPlane) -> bool:
    return (await plane.registry.ListAdapters(pb.ListAdaptersRequest())).total_size == 0


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a@3", "a@", "é", "a\n", "a" * 129, "a\0b", "/a", "a" * 100_000]
)
async def test_names(plane: ControlPlane, tmp_path: Path, name: str) -> None:
    error = await failure(plane.register(name, tmp_path))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.reason == "NAME_INVALID"
    assert error.metadata["field"] == "name"
    assert len(error.message) < 600


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("voice@", "VERSION_INVALID"),
        ("voice@0", "VERSION_INVALID"),
        ("voice@01", "VERSION_INVALID"),
        ("voice@-1", "VERSION_INVALID"),
        ("voice@4294967296", "VERSION_INVALID"),
        ("voice@" + "9" * 5000, "VERSION_INVALID"),
        ("voice@1@2", "VERSION_INVALID"),
        ("@1", "NAME_INVALID"),
        ("", "NAME_INVALID"),
    ],
)
async def test_malformed_references(voices: ControlPlane, reference: str, reason: str) -> None:
    error = await failure(voices.registry.GetAdapter(pb.GetAdapterRequest(name=reference)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.reason == reason


async def test_unknown_names(voices: ControlPlane) -> None:
    registry = voices.registry
    calls: list[tuple[Any, str]] = [
        (registry.GetAdapter(pb.GetAdapterRequest(name="nobody")), "ADAPTER_NOT_FOUND"),
        (registry.GetAdapter(pb.GetAdapterRequest(name="voice@9")), "ADAPTER_NOT_FOUND"),
        (registry.GetAdapter(pb.GetAdapterRequest(name="prod@1")), "ADAPTER_NOT_FOUND"),
        (registry.VerifyAdapter(pb.VerifyAdapterRequest(name="nobody")), "ADAPTER_NOT_FOUND"),
        (
            registry.PromoteAdapter(pb.PromoteAdapterRequest(name="nobody", version=1)),
            "ADAPTER_NOT_FOUND",
        ),
        (
            registry.PromoteAdapter(pb.PromoteAdapterRequest(name="prod", version=1)),
            "ADAPTER_NOT_FOUND",
        ),
        (
            registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=9)),
            "VERSION_NOT_FOUND",
        ),
        (registry.RollbackAdapter(pb.RollbackAdapterRequest(name="nobody")), "ADAPTER_NOT_FOUND"),
        (registry.RemoveAdapter(pb.RemoveAdapterRequest(name="nobody")), "ADAPTER_NOT_FOUND"),
        (
            registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice", version=9)),
            "VERSION_NOT_FOUND",
        ),
        (registry.RemoveAlias(pb.RemoveAliasRequest(name="voice")), "ALIAS_NOT_FOUND"),
        (
            registry.SetAlias(pb.SetAliasRequest(alias=pb.Alias(name="x", adapter="prod"))),
            "ADAPTER_NOT_FOUND",
        ),
        (
            registry.SetAlias(
                pb.SetAliasRequest(alias=pb.Alias(name="x", adapter="voice", version=9))
            ),
            "VERSION_NOT_FOUND",
        ),
    ]
    for call, reason in calls:
        error = await failure(call)
        assert isinstance(error, errors.NotFoundError)
        assert error.reason == reason


async def test_taken_names(voices: ControlPlane, tmp_path: Path) -> None:
    for name in ("prod", "tiny/llama"):
        error = await failure(voices.register(name, tmp_path / "1"))
        assert isinstance(error, errors.AlreadyExistsError)
        assert error.metadata == {"field": "name", "name": name}
    for name in ("voice", "tiny/llama"):
        alias = pb.Alias(name=name, adapter="voice")
        error = await failure(voices.registry.SetAlias(pb.SetAliasRequest(alias=alias)))
        assert isinstance(error, errors.AlreadyExistsError)
        assert error.reason == "NAME_TAKEN"


async def test_preconditions(voices: ControlPlane) -> None:
    remove = voices.registry.RemoveAdapter
    error = await failure(remove(pb.RemoveAdapterRequest(name="voice", version=2)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_IS_CURRENT")
    error = await failure(remove(pb.RemoveAdapterRequest(name="voice", version=1)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_HAS_ALIAS")
    assert error.metadata["alias"] == "prod"
    await voices.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice"))
    error = await failure(voices.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice")))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "NO_PREVIOUS_VERSION")


async def test_promote_needs_a_version(voices: ControlPlane) -> None:
    error = await failure(voices.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice")))
    assert error.reason == "VERSION_INVALID"


async def test_base_models(plane: ControlPlane, tmp_path: Path) -> None:
    source = make_adapter_dir(tmp_path / "1")
    unnamed = make_adapter_dir(tmp_path / "unnamed", base_model_name="")
    foreign = make_adapter_dir(tmp_path / "foreign", base_model_name="org/other-model")
    error = await failure(plane.register("voice", source))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "BASE_MODEL_UNKNOWN")
    await plane.join()
    assert (await failure(plane.register("v", unnamed))).reason == "BASE_MODEL_REQUIRED"
    assert (await failure(plane.register("v", foreign))).reason == "BASE_MODEL_UNKNOWN"
    error = await failure(plane.register("v", source, base_model="nobody"))
    assert error.reason == "BASE_MODEL_UNKNOWN"
    assert "tiny/llama" in error.message
    await plane.join("dp-1", base=replace(TINY_BASE, name="elsewhere/llama"))
    short = make_adapter_dir(tmp_path / "short", base_model_name="llama")
    assert (await failure(plane.register("v", short))).reason == "BASE_MODEL_AMBIGUOUS"
    assert await nothing_stored(plane)
    # Named explicitly, all of them fit.
    for name, path in (("u", unnamed), ("f", foreign), ("s", short)):
        response = await plane.register(name, path, base_model="tiny/llama")
        assert response.version.base_model == "tiny/llama"


async def test_adapters_that_do_not_fit(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    wide = replace(
        TINY_BASE, layer_modules={**TINY_BASE.layer_modules, "self_attn.q_proj": (16, 32)}
    )
    error = await failure(plane.register("v", make_adapter_dir(tmp_path / "wide", base=wide)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "SHAPE_MISMATCH")
    deep = replace(TINY_BASE, num_layers=3)
    error = await failure(plane.register("v", make_adapter_dir(tmp_path / "deep", base=deep)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "UNKNOWN_MODULE")
    partial = make_adapter_dir(
        tmp_path / "partial", config={"target_modules": ["q_proj", "v_proj", "o_proj"]}
    )
    error = await failure(plane.register("v", partial))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "MISSING_MODULES")
    assert await nothing_stored(plane)


async def test_adapter_files(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    norms = make_adapter_dir(tmp_path / "norms", config={"modules_to_save": ["norm"]})
    error = await failure(plane.register("v", norms))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "UNSUPPORTED_FEATURE")

    poisoned = make_adapter_dir(tmp_path / "nan")
    weights = load_file(poisoned / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = np.nan
    save_file(weights, poisoned / "adapter_model.safetensors")
    error = await failure(plane.register("v", poisoned))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "NON_FINITE_VALUES")

    cut = make_adapter_dir(tmp_path / "cut")
    path = cut / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    error = await failure(plane.register("v", cut))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "BAD_WEIGHTS")
    assert await nothing_stored(plane)


async def test_sources(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    expected = {
        "/etc": ("PERMISSION_DENIED", "SOURCE_OUTSIDE_ROOTS"),
        f"{tmp_path}/../..": ("PERMISSION_DENIED", "SOURCE_OUTSIDE_ROOTS"),
        f"{tmp_path}/nowhere": ("NOT_FOUND", "SOURCE_NOT_FOUND"),
        "s3://bucket/adapter": ("PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
        "ftp://host/adapter": ("INVALID_ARGUMENT", "UNSUPPORTED_SCHEME"),
        "": ("INVALID_ARGUMENT", "SOURCE_INVALID"),
        "/a\0b": ("INVALID_ARGUMENT", "SOURCE_INVALID"),
        "/" + "a" * 5000: ("INVALID_ARGUMENT", "SOURCE_INVALID"),
    }
    for source, (code, reason) in expected.items():
        error = await failure(plane.register("v", source))
        assert (error.code.name, error.reason) == (code, reason), source
        assert len(error.message) < 1000


async def test_weights_over_the_limit(redis_url: str, tmp_path: Path) -> None:
    source = make_adapter_dir(tmp_path / "1")
    async with running(redis_url, adapter_roots=[tmp_path], max_adapter_bytes=1000) as plane:
        await plane.join()
        error = await failure(plane.register("v", source))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "ADAPTER_TOO_LARGE")


@pytest.mark.parametrize(
    "labels",
    [
        {str(i): "" for i in range(33)},
        {"": "x"},
        {"k" * 65: "x"},
        {"k": "v" * 257},
    ],
)
async def test_labels(plane: ControlPlane, tmp_path: Path, labels: dict[str, str]) -> None:
    error = await failure(plane.register("v", tmp_path, labels=labels))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "LABEL_INVALID")


@pytest.mark.parametrize("token", ["x", "####", "YWZ0ZXI6", "YWZ0ZXI6QEA=", "é", "A" * 100_000])
async def test_page_tokens(plane: ControlPlane, token: str) -> None:
    error = await failure(plane.registry.ListAdapters(pb.ListAdaptersRequest(page_token=token)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_page_size(plane: ControlPlane) -> None:
    error = await failure(plane.registry.ListAdapters(pb.ListAdaptersRequest(page_size=1001)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "PAGE_SIZE_INVALID")


async def test_a_name_that_must_be_new_is_refused_before_the_source_is_read(
    voices: ControlPlane, tmp_path: Path
) -> None:
    before = await voices.registry.GetAdapter(pb.GetAdapterRequest(name="voice"))
    for name, reason in (("voice", "ADAPTER_EXISTS"), ("prod", "NAME_TAKEN")):
        error = await failure(voices.register(name, "/nowhere/at/all", must_be_new=True))
        assert isinstance(error, errors.AlreadyExistsError)
        assert (error.reason, error.metadata["field"]) == (reason, "name")
    assert await voices.registry.GetAdapter(pb.GetAdapterRequest(name="voice")) == before
    new = await voices.register("other", tmp_path / "1", must_be_new=True)
    assert new.created and new.version.version == 1


async def test_of_several_who_want_a_new_name_one_gets_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await plane.join()
    sources = [make_adapter_dir(tmp_path / str(seed), seed=seed) for seed in range(4)]
    calls = [plane.register("voice", source, must_be_new=True) for source in sources]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(end, pb.RegisterAdapterResponse) for end in ended) == 1
    refused = [from_rpc_error(end) for end in ended if isinstance(end, grpc.RpcError)]
    assert {error.reason for error in refused} == {"ADAPTER_EXISTS"} and len(refused) == 3
    found = await plane.registry.GetAdapter(pb.GetAdapterRequest(name="voice"))
    assert [version.version for version in found.adapter.versions] == [1]


@pytest.mark.parametrize("name", ["a/../b", "a//b", "a/", "a/./b", "a/.."])
async def test_names_that_no_url_keeps(
    voices: ControlPlane, tmp_path: Path, redis_server: EmbeddedRedis, name: str
) -> None:
    set_alias = voices.registry.SetAlias
    alias = pb.SetAliasRequest(alias=pb.Alias(name=name, adapter="voice"))
    for call in (voices.register(name, tmp_path / "1"), set_alias(alias)):
        error = await failure(call)
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "NAME_INVALID")
    # One of an older version stays good.
    send(redis_server, f'HSET "{keys.ALIAS}{name}" adapter voice version 1')
    send(redis_server, f'SADD "{keys.ALIASES_OF}voice" {name}')
    found = await voices.registry.GetAdapter(pb.GetAdapterRequest(name=name))
    assert found.resolved_version == 1
    await set_alias(alias)


async def test_numbers_that_are_given(voices: ControlPlane, tmp_path: Path) -> None:
    new = make_adapter_dir(tmp_path / "7", seed=7)
    for number in (1, 2):
        error = await failure(voices.register("voice", new, version=number))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_NUMBER_TAKEN")
    error = await failure(voices.register("voice", tmp_path / "1", version=7))
    assert error.reason == "VERSION_NUMBER_TAKEN", "its content is version 1"
    error = await failure(voices.register("voice", new, version=2**32 - 1))
    assert error.reason == "VERSION_INVALID"
    assert (await voices.register("voice", new, version=7)).version.version == 7
    earlier = await voices.register("voice", make_adapter_dir(tmp_path / "5", seed=5), version=5)
    assert earlier.version.version == 5
    assert not (await voices.register("voice", new, version=7)).created
    after = await voices.register("voice", make_adapter_dir(tmp_path / "8", seed=8))
    assert after.version.version == 8


async def test_content_that_is_expected(voices: ControlPlane, tmp_path: Path) -> None:
    new = make_adapter_dir(tmp_path / "7", seed=7)
    error = await failure(voices.register("voice", new, expected_digest="0" * 64))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "DIGEST_MISMATCH")
    made = await voices.register("fresh", new, expected_digest=error.metadata["found_digest"])
    assert made.created


async def test_the_current_version_may_stay(voices: ControlPlane, tmp_path: Path) -> None:
    new = make_adapter_dir(tmp_path / "7", seed=7)
    made = await voices.register("voice", new, keep_current=True)
    assert (made.version.version, made.adapter.current_version) == (3, 2)
    first = await voices.register("fresh", new, keep_current=True)
    assert first.adapter.current_version == 1
