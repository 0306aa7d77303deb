"""Merges in the registry: what they are made of, what they hold on to, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chorale import AsyncClient
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import admission_pb2
from controlplane.registry.intake import Intake
from controlplane.registry.registry import AdapterRegistry
from controlplane.store.client import Store
from storage.adapter.manifest import digest_of
from storage.limits import DEFAULT_LIMITS
from storage.sources import SourceOptions, build_router
from tests.controlplane.merging import get, merge, remove, voices
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, failure, running

__all__ = ["voices"]


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
