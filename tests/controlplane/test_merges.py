"""Merges in the registry: what they are made of, what they hold on to, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chorale import AsyncClient
from chorale.errors import NotFoundError
from chorale.source_token import KEY
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import admission_pb2
from controlplane.registry.intake import Intake
from controlplane.registry.registry import AdapterRegistry
from controlplane.store.client import Store
from storage.adapter.manifest import digest_of
from storage.limits import DEFAULT_LIMITS
from storage.merge.recipe import parse_recipe
from storage.sources import SourceOptions, SourceRouter, build_router
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running


@pytest.fixture
async def voices(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """`a` of rank 4, and `b` of rank 6 with versions 1 and 2 (current); alias `live` of `b`."""
    await plane.join(max_running=4)
    await plane.register("a", make_adapter_dir(tmp_path / "a", seed=1))
    for seed in (2, 3):
        made = make_adapter_dir(
            tmp_path / f"b{seed}", seed=seed, rank=6, targets=("v_proj", "up_proj")
        )
        await plane.register("b", made)
    alias = pb.Alias(name="live", adapter="b")
    await plane.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    return plane


async def merge(plane: ControlPlane, name: str, weights: dict[str, float], **fields: Any) -> Any:
    components = [pb.MergeComponent(adapter=key, weight=value) for key, value in weights.items()]
    return await plane.registry.MergeAdapters(
        pb.MergeAdaptersRequest(name=name, components=components, **fields)
    )


async def get(plane: ControlPlane, name: str) -> pb.GetAdapterResponse:
    return await plane.registry.GetAdapter(pb.GetAdapterRequest(name=name))


async def remove(plane: ControlPlane, name: str, version: int = 0) -> None:
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name=name, version=version))


async def test_a_merge_is_an_adapter_with_its_components_told(voices: ControlPlane) -> None:
    done = await merge(voices, "mix", {"a": 0.5, "live": -2.0}, labels={"team": "x"})
    assert done.created and done.version.version == 1 and done.adapter.current_version == 1
    version = (await get(voices, "mix")).adapter.versions[0]
    assert version == done.version
    assert version.base_model == TINY_BASE.name and version.labels == {"team": "x"}
    assert version.rank == 10  # v_proj has both
    assert list(version.target_modules) == [
        "mlp.up_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    told = {each.adapter: each for each in version.merge.components}
    assert version.merge.strategy == pb.MERGE_STRATEGY_CAT
    assert {name: each.weight for name, each in told.items()} == {"a@1": 0.5, "b@2": -2.0}
    assert told["a@1"].digest == (await get(voices, "a")).adapter.versions[0].digest
    assert not (await get(voices, "a")).adapter.versions[0].HasField("merge")
    admitted = await voices.admission.Admit(admission_pb2.AdmitRequest(model="mix"))
    signed = admission_pb2.SignedTicket.FromString(admitted.ticket)
    claims = admission_pb2.TicketClaims.FromString(signed.claims)
    assert (claims.adapter_digest, claims.adapter_source) == (version.digest, version.source)


async def test_the_digest_is_of_content_that_order_and_names_do_not_change(
    voices: ControlPlane, tmp_path: Path
) -> None:
    first = await merge(voices, "mix", {"a": 0.5, "b": 2.0})
    await voices.register("again", tmp_path / "a")
    same = await merge(voices, "mix", {"b@2": 2.0, "again": 0.5}, strategy=pb.MERGE_STRATEGY_CAT)
    assert not same.created and same.version.digest == first.version.digest
    others = [
        await merge(voices, "mix", {"a": 0.5, "b@1": 2.0}),
        await merge(voices, "mix", {"a": 2.0, "b": 0.5}),
        await merge(voices, "mix", {"a": 0.5}),
    ]
    digests = {each.version.digest for each in (first, *others)}
    assert len(digests) == 4 and all(each.created for each in others)
    router = build_router(SourceOptions(roots=[tmp_path]))
    files = await router.fetch(first.version.source)
    assert digest_of(files.config, files.weights) == first.version.digest
    await router.aclose()


async def test_strategies_and_what_decides_them_make_other_content(
    voices: ControlPlane, tmp_path: Path
) -> None:
    await voices.register("c", make_adapter_dir(tmp_path / "c", seed=9))
    weights = {"a": 1.0, "c": 0.5}
    ties = {"strategy": pb.MERGE_STRATEGY_TIES, "density": 0.5}
    dare = {"strategy": pb.MERGE_STRATEGY_DARE_LINEAR, "density": 0.5}
    kinds: list[dict[str, Any]] = [
        {},
        {"strategy": pb.MERGE_STRATEGY_LINEAR},
        ties,
        ties | {"density": 0.25},
        {"strategy": pb.MERGE_STRATEGY_MAGNITUDE_PRUNE, "density": 0.5},
        dare,
        dare | {"seed": 1},
        {"strategy": pb.MERGE_STRATEGY_DARE_TIES, "density": 0.5, "seed": 2**64 - 1},
    ]
    made = [(await merge(voices, "kinds", weights, **kind)).version for kind in kinds]
    assert len({version.digest for version in made}) == len(kinds)
    assert made[2].merge.majority_sign == pb.MAJORITY_SIGN_TOTAL and made[2].merge.density == 0.5
    assert made[5].merge.seed == 0 and made[7].merge.seed == 2**64 - 1
    assert not made[1].merge.HasField("density") and not made[1].merge.HasField("seed")
    again = await merge(voices, "kinds", weights, **dare, keep_current=True)
    assert not again.created and again.version.version == 6
    assert again.adapter.current_version == 8
    taken = await failure(merge(voices, "kinds", weights, must_be_new=True))
    assert taken.reason == "ADAPTER_EXISTS"


async def test_new_versions_change_no_merge_and_components_stay(voices: ControlPlane) -> None:
    before = (await merge(voices, "mix", {"a": 0.5, "b": 2.0})).version
    await voices.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="b", version=1))
    assert (await get(voices, "mix")).adapter.versions[0] == before
    for name, version in (("a", 0), ("b", 2), ("b", 0)):
        error = await failure(remove(voices, name, version))
        assert (error.reason, error.metadata["merge"]) == ("ADAPTER_MERGED", "mix@1")
    await merge(voices, "mix", {"a": 0.25})
    await remove(voices, "mix", 1)
    await remove(voices, "b", 2)
    assert (await failure(remove(voices, "a"))).metadata["merge"] == "mix@2"
    await remove(voices, "mix")
    await remove(voices, "b")
    await remove(voices, "a")
    assert (await voices.registry.ListAdapters(pb.ListAdaptersRequest())).total_size == 0


async def test_a_merge_may_be_a_version_of_its_component(voices: ControlPlane) -> None:
    await merge(voices, "a", {"a": 0.5, "b": 1.0})
    assert (await failure(remove(voices, "a", 1))).metadata["merge"] == "a@2"
    assert (await failure(remove(voices, "b"))).metadata["merge"] == "a@2"
    await remove(voices, "a")
    await remove(voices, "b")


async def test_what_is_registered_plainly_holds_its_components_no_more(
    voices: ControlPlane, tmp_path: Path
) -> None:
    source = (await merge(voices, "mix", {"a": 0.5})).version.source
    router = build_router(SourceOptions(roots=[tmp_path]))
    files = await router.fetch(source)
    await router.aclose()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "adapter_config.json").write_bytes(files.config)
    (tmp_path / "plain" / "adapter_model.safetensors").write_bytes(files.weights)
    done = await voices.register("mix", tmp_path / "plain")
    assert not done.created and not done.version.HasField("merge")
    await remove(voices, "a")


async def test_a_recipe_may_be_registered_anew_where_its_components_are(
    voices: ControlPlane,
) -> None:
    made = (await merge(voices, "mix", {"a": 0.5, "b": 2.0})).version
    await remove(voices, "mix")
    await remove(voices, "b", 1)
    fields = {"expected_digest": made.digest, "version": 7}
    done = await voices.register("mix", made.source, base_model=TINY_BASE.name, **fields)
    assert done.version.merge == made.merge and done.version.version == 7
    assert (await failure(remove(voices, "a"))).metadata["merge"] == "mix@7"
    verified = await voices.registry.VerifyAdapter(pb.VerifyAdapterRequest(name="mix"))
    assert verified.matches
    await remove(voices, "mix")
    await remove(voices, "a")
    error = await failure(voices.register("mix", made.source))
    assert (error.reason, error.metadata["component"]) == ("MERGE_COMPONENT_UNKNOWN", "a@1")


BAD: list[tuple[dict[str, float], dict[str, Any], str]] = [
    ({}, {}, "components"),
    ({f"x{number}": 1.0 for number in range(65)}, {}, "components"),
    ({"a": math.nan}, {}, "components[0].weight"),
    ({"a": math.inf}, {}, "components[0].weight"),
    ({"a": 0.0}, {}, "components[0].weight"),
    ({"a": 1e4}, {}, "components[0].weight"),
    ({"a": 1.0, "b": -1e-9}, {}, "components[1].weight"),
    ({"a": 1.0, "a@1": 1.0}, {}, "components[1]"),
    ({"a": 1.0, "mixed": 1.0}, {}, "components"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 2}, "components"),  # other ranks
    ({"a": 1.0}, {"strategy": 3, "density": 0.5}, "components"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 99}, "strategy"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": 0.0}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": math.nan}, "density"),
    ({"a": 1.0, "b": 1.0}, {"strategy": 3, "density": 1.01}, "density"),
    ({"a": 1.0, "c": 1.0}, {"strategy": 3, "density": 0.01}, "density"),  # would leave nothing
    ({"a": 1.0, "c": 1.0}, {"strategy": 5, "density": 1e-300}, "density"),
    ({"a": 1.0, "b": 1.0}, {"density": 0.5}, "density"),
    ({"a": 1.0, "b": 1.0}, {"seed": 0}, "seed"),
    ({"a": 1.0, "b": 1.0}, {"majority_sign": 1}, "majority_sign"),
    ({"a": 1.0, "b": 1.0}, {"majority_sign": 9}, "majority_sign"),
]


async def test_bad_merges_are_refused_by_field(voices: ControlPlane, tmp_path: Path) -> None:
    await voices.register("c", make_adapter_dir(tmp_path / "c", seed=8))
    await merge(voices, "mixed", {"a": 0.5})
    for weights, fields, field in BAD:
        error = await failure(merge(voices, "bad", weights, **fields))
        assert (error.reason, error.metadata.get("field")) == ("MERGE_REFUSED", field), error
        assert len(error.message) < 400
    assert isinstance(await failure(get(voices, "bad")), NotFoundError)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"nobody": 1.0}, "ADAPTER_NOT_FOUND"),
        ({"a@9": 1.0}, "ADAPTER_NOT_FOUND"),
        ({"shared": 1.0}, "ALIAS_AMBIGUOUS"),
        ({"é": 1.0}, "NAME_INVALID"),
        ({"": 1.0}, "NAME_INVALID"),
    ],
)
async def test_components_that_are_no_one_version(
    voices: ControlPlane, weights: dict[str, float], reason: str
) -> None:
    targets = [pb.AliasTarget(adapter=name, weight=1) for name in ("a", "b")]
    alias = pb.Alias(name="shared", targets=targets)
    await voices.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    assert (await failure(merge(voices, "bad", weights))).reason == reason


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"ensure_weight_tying": True},
    ],
    ids=lambda config: next(iter(config)),
)
async def test_what_is_more_than_plain_lora_is_refused_by_component(
    voices: ControlPlane, tmp_path: Path, config: dict[str, Any]
) -> None:
    made = make_adapter_dir(tmp_path / "odd", seed=4, config=config)
    add_tensors(made, config)
    await voices.register("odd", made)
    error = await failure(merge(voices, "bad", {"a": 1.0, "odd": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("MERGE_REFUSED", "odd@1")
    assert next(iter(config)) in error.message


def add_tensors(directory: Path, config: dict[str, Any]) -> None:
    """Those that such a configuration asks for."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in list(tensors.items()):
        if not name.endswith("lora_B.weight"):
            continue
        ones = np.ones(value.shape[0], np.float32)
        if "use_dora" in config:
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = ones
        if "lora_bias" in config:
            tensors[name.replace("weight", "bias")] = ones
        if "bias" in config:
            tensors[name.replace("lora_B.weight", "base_layer.bias")] = ones
    if "modules_to_save" in config:
        tensors["base_model.model.lm_head.weight"] = np.ones((64, 16), np.float32)
    save_file(tensors, path, metadata={"format": "pt"})


async def test_ranks_beyond_the_kernels_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    for name, rank in (("wide", 252), ("wider", 253)):
        await voices.register(name, make_adapter_dir(tmp_path / name, rank=rank, seed=rank))
    assert (await merge(voices, "most", {"a": 1.0, "wide": 1.0})).version.rank == 256
    error = await failure(merge(voices, "bad", {"a": 1.0, "wider": 1.0}))
    assert error.reason == "MERGE_REFUSED" and "257" in error.message and "256" in error.message


async def test_sums_beyond_float32_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    big = make_adapter_dir(tmp_path / "big", seed=5, lora_alpha=10**6)
    path = big / "adapter_model.safetensors"
    tensors = {name: value * np.float32(1e32) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    await voices.register("big", big)
    error = await failure(merge(voices, "bad", {"a": 1.0, "big": 1000.0}))
    assert (error.reason, error.metadata["field"]) == ("MERGE_REFUSED", "weight")


async def test_other_base_models_are_refused(voices: ControlPlane, tmp_path: Path) -> None:
    other = replace(TINY_BASE, name="tiny/other")
    await voices.join("dp-1", base=other)
    await voices.register("o", make_adapter_dir(tmp_path / "o", base=other, seed=6))
    error = await failure(merge(voices, "bad", {"a": 1.0, "o": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("MERGE_BASE_MIXED", "o@1")
    source = (await merge(voices, "mix", {"a": 1.0})).version.source
    error = await failure(voices.register("bad", source, base_model="tiny/other"))
    assert error.reason == "MERGE_COMPONENT_UNKNOWN"


async def test_a_source_that_changed_is_refused_by_component(
    voices: ControlPlane, tmp_path: Path
) -> None:
    make_adapter_dir(tmp_path / "a", seed=77)
    error = await failure(merge(voices, "bad", {"a": 1.0, "b": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("DIGEST_MISMATCH", "a@1")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    error = await failure(merge(voices, "bad", {"a": 1.0, "b": 1.0}))
    assert (error.reason, error.metadata["component"]) == ("SOURCE_NOT_FOUND", "a@1")


async def test_a_token_means_nothing_to_a_merge(voices: ControlPlane) -> None:
    request = pb.MergeAdaptersRequest(
        name="mix", components=[pb.MergeComponent(adapter="a", weight=1.0)]
    )
    call = voices.registry.MergeAdapters(request, metadata=((KEY, "secret"),))
    assert (await failure(call)).reason == "TOKEN_UNSUPPORTED"


STRANGE = [
    "merge:",
    "merge:cat",
    "merge:cat?of=a@1",
    "merge:cat?of=a@1*1.0*zz*/x",
    "merge:cat?of=a@1*nan*{digest}*/x",
    "merge:cat?of=a@1*1.0*{digest}*merge:cat",
    "merge:cat?of=a@1*1.0*{digest}*",
    "merge:cat?of=a@1*1.0*{digest}*/x%00",
    "merge:svd?of=a@1*1.0*{digest}*/x",
    "merge:cat?density=0.5&of=a@1*1.0*{digest}*/x",
    "merge:ties?density=0.5&density=0.5&of=a@1*1.0*{digest}*/x",
    "merge:cat?what=1&of=a@1*1.0*{digest}*/x",
    "merge:dare_linear?density=1e-&seed=-1&of=a@1*1.0*{digest}*/x",
    "merge:cat?" + "&" * 5_000,
]


async def test_recipes_from_strangers(voices: ControlPlane) -> None:
    for source in STRANGE:
        error = await failure(voices.register("bad", source.format(digest="0" * 64)))
        assert error.reason == "MERGE_REFUSED", (source, error)
        assert len(error.message) < 500


async def test_a_recipe_reads_no_more_than_the_operator_opened(voices: ControlPlane) -> None:
    source = (await merge(voices, "mix", {"a": 1.0})).version.source
    recipe = parse_recipe(source)
    outside = source.replace(recipe.components[0].source, "/etc")
    assert (await failure(voices.register("bad", outside))).reason == "SOURCE_OUTSIDE_ROOTS"
    too_long = source + "a" * 17_000
    assert (await failure(voices.register("bad", too_long))).reason == "SOURCE_INVALID"


async def test_uploads_that_a_merge_is_made_of_are_kept(redis_url: str, tmp_path: Path) -> None:
    """Also when no version names them any more."""
    async with running(redis_url, blob_dir=tmp_path / "blobs", adapter_roots=[tmp_path]) as plane:
        await plane.join()
        made = make_adapter_dir(tmp_path / "a")
        async with AsyncClient(plane.address) as client:
            uploaded = await client.adapters.upload(made)
            await client.adapters.register("a", uploaded.source)
            await client.adapters.merge("mix", {"a": 0.5})
            await client.adapters.register("a", str(made))
        store, router = Store(redis_url), build_router(SourceOptions())
        registry = AdapterRegistry(store, Intake(router, DEFAULT_LIMITS))
        assert await registry.blob_digests() == {uploaded.digest}
        await remove(plane, "mix")
        assert await registry.blob_digests() == set()
        await store.close()
        await router.aclose()


async def test_a_recipe_of_what_is_not_registered_is_refused_before_anything_is_read(
    voices: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await merge(voices, "mix", {"a": 0.5, "b": 2.0})).version
    read: list[str] = []

    async def fetch(_: SourceRouter, uri: str, *args: Any) -> None:
        read.append(uri)
        raise AssertionError

    monkeypatch.setattr(SourceRouter, "fetch", fetch)
    (first, second) = made.merge.components
    for forged in (
        made.source.replace(first.adapter, "other@1"),
        made.source.replace(first.adapter, f"{first.adapter}0"),
        made.source.replace(second.digest, "f" * 64),
    ):
        error = await failure(voices.register("forged", forged, base_model=TINY_BASE.name))
        assert error.reason == "MERGE_COMPONENT_UNKNOWN"
    assert not read
