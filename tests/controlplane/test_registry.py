"""The registry's life over gRPC, with real adapter files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from chorale import tickets
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import admission_pb2 as admission_pb
from controlplane.registry import registry
from controlplane.registry.intake import Intake
from storage.base_model import MixtureModule
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import ControlPlane, base_model, failure, running


async def get(plane: ControlPlane, name: str) -> pb.GetAdapterResponse:
    return await plane.registry.GetAdapter(pb.GetAdapterRequest(name=name))


async def three_versions(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    for seed in (1, 2, 3):
        await plane.register("voice", make_adapter_dir(tmp_path / str(seed), seed=seed))


async def test_register_describes_the_adapter(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    source = make_adapter_dir(tmp_path / "a b", rank=4, targets=("v_proj", "q_proj"))
    response = await plane.register("team/voice", source, labels={"stage": "dev", "ü": "é"})
    version = response.version
    assert response.created
    assert response.adapter.name == "team/voice"
    assert response.adapter.current_version == version.version == 1
    assert len(version.digest) == 64
    assert version.source == source.as_uri()
    assert version.base_model == "tiny/llama"
    assert version.rank == 4
    assert list(version.target_modules) == ["self_attn.q_proj", "self_attn.v_proj"]
    assert version.size_bytes == (source / "adapter_model.safetensors").stat().st_size
    assert version.created_at.seconds > 1_700_000_000
    assert dict(version.labels) == {"stage": "dev", "ü": "é"}
    assert (await get(plane, "team/voice")).adapter == response.adapter


async def test_invocation_tokens_are_told_and_go_with_tickets(
    redis_url: str, tmp_path: Path
) -> None:
    """Of an activated LoRA; they survive restarts as all of a version does."""
    config = {"alora_invocation_tokens": [5, 31, 5]}
    async with running(redis_url, adapter_roots=[tmp_path]) as plane:
        await plane.join()
        await plane.register("judge", make_adapter_dir(tmp_path / "judge", config=config))
        plain = await plane.register("judge", make_adapter_dir(tmp_path / "plain"))
        assert plain.created, "without them it is another adapter"
    async with running(redis_url, adapter_roots=[tmp_path]) as plane:
        joined = await plane.join()
        versions = (await get(plane, "judge")).adapter.versions
        assert [list(each.invocation_tokens) for each in versions] == [[], [5, 31, 5]]
        keys = {key.key_id: key.key for key in joined.ticket_keys}
        for model, expected in (("judge@1", [5, 31, 5]), ("judge", []), ("", [])):
            placed = await plane.admission.Admit(admission_pb.AdmitRequest(model=model))
            claims = tickets.genuine(placed.ticket, keys)
            assert list(claims.adapter_invocation_tokens) == expected, model


async def test_same_content_is_one_version(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    first = await plane.register(
        "voice", make_adapter_dir(tmp_path / "1", seed=1), labels={"a": "1"}
    )
    second = await plane.register("voice", make_adapter_dir(tmp_path / "2", seed=2))
    moved = make_adapter_dir(tmp_path / "moved", seed=1)
    again = await plane.register("voice", moved)
    assert (second.created, again.created) == (True, False)
    assert again.version.version == again.adapter.current_version == 1
    assert again.version.digest == first.version.digest != second.version.digest
    # It is fetched from where it was seen last; labels stay unless new ones are given.
    assert again.version.source == moved.as_uri()
    assert dict(again.version.labels) == {"a": "1"}
    assert again.version.created_at == first.version.created_at
    relabelled = await plane.register("voice", moved, labels={"b": "2"})
    assert dict(relabelled.version.labels) == {"b": "2"}


async def test_another_base_model_is_another_version(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    await plane.join("dp-1", base=replace(TINY_BASE, name="other"))
    source = make_adapter_dir(tmp_path / "1")
    await plane.register("voice", source)
    other = await plane.register("voice", source, base_model="other")
    assert other.created
    assert [v.base_model for v in other.adapter.versions] == ["other", "tiny/llama"]


async def test_promote_and_roll_back(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)
    response = await plane.registry.PromoteAdapter(
        pb.PromoteAdapterRequest(name="voice", version=1)
    )
    assert response.adapter.current_version == 1
    assert [v.version for v in response.adapter.versions] == [3, 2, 1]
    currents = []
    for _ in range(3):
        rolled = await plane.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice"))
        currents.append(rolled.adapter.current_version)
    assert currents == [3, 2, 1]


async def test_promoting_the_current_version_leaves_history(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await three_versions(plane, tmp_path)
    for _ in range(3):
        await plane.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=3))
    rolled = await plane.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice"))
    assert rolled.adapter.current_version == 2


async def test_rollback_passes_over_removed_versions(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)  # history 1, 2
    await plane.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=1))
    await plane.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=3))
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice", version=2))
    currents = []
    for _ in range(3):  # history was 1, 2, 3, 1
        rolled = await plane.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice"))
        currents.append(rolled.adapter.current_version)
    assert currents == [1, 3, 1]


async def test_versions_are_never_used_again(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice", version=2))
    removed_content = await plane.register("voice", tmp_path / "2")
    assert removed_content.created
    assert removed_content.version.version == 4
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice"))
    anew = await plane.register("voice", tmp_path / "1")
    assert anew.version.version == 5
    assert [v.version for v in anew.adapter.versions] == [5]


async def test_references_resolve(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)
    for name, version in (("prod", 2), ("latest", 0)):
        alias = pb.Alias(name=name, adapter="voice", version=version)
        response = await plane.registry.SetAlias(pb.SetAliasRequest(alias=alias))
        assert response.alias == alias
    resolved = {
        name: (await get(plane, name)).resolved_version
        for name in ("voice", "voice@1", "prod", "latest")
    }
    assert resolved == {"voice": 3, "voice@1": 1, "prod": 2, "latest": 3}
    adapter = (await get(plane, "prod")).adapter
    assert [(alias.name, alias.version) for alias in adapter.aliases] == [
        ("latest", 0),
        ("prod", 2),
    ]


async def test_aliases_move_and_go(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)
    await plane.register("other", tmp_path / "1")
    for adapter in ("voice", "other"):
        alias = pb.Alias(name="prod", adapter=adapter)
        await plane.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    assert (await get(plane, "prod")).adapter.name == "other"
    assert not (await get(plane, "voice")).adapter.aliases
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="other"))
    # The alias went with its adapter: its name is free.
    assert (await plane.register("prod", tmp_path / "1")).created


async def test_pages(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    source = make_adapter_dir(tmp_path / "1")
    names = [f"a{i:02}" for i in range(7)]
    for name in reversed(names):
        await plane.register(name, source)
    found: list[str] = []
    token = ""
    sizes = []
    while True:
        page = await plane.registry.ListAdapters(
            pb.ListAdaptersRequest(page_size=3, page_token=token)
        )
        assert page.total_size == 7
        sizes.append(len(page.adapters))
        found += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
        if not token:
            break
    assert found == names
    assert sizes == [3, 3, 1]
    exact = await plane.registry.ListAdapters(pb.ListAdaptersRequest(page_size=7))
    assert (len(exact.adapters), exact.next_page_token) == (7, "")


async def test_pages_of_one_base_model(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.join()
    await plane.join("dp-1", base=replace(TINY_BASE, name="other"))
    source = make_adapter_dir(tmp_path / "1")
    for i in range(6):
        await plane.register(f"a{i}", source, base_model="other" if i % 2 else "tiny/llama")
    first = await plane.registry.ListAdapters(
        pb.ListAdaptersRequest(page_size=2, base_model="other")
    )
    rest = await plane.registry.ListAdapters(
        pb.ListAdaptersRequest(base_model="other", page_token=first.next_page_token)
    )
    assert [adapter.name for adapter in first.adapters] == ["a1", "a3"]
    assert [adapter.name for adapter in rest.adapters] == ["a5"]
    assert rest.next_page_token == ""


async def test_verify(plane: ControlPlane, tmp_path: Path) -> None:
    await three_versions(plane, tmp_path)
    request = pb.VerifyAdapterRequest(name="voice@1")
    assert (await plane.registry.VerifyAdapter(request)).matches
    make_adapter_dir(tmp_path / "1", seed=9)
    changed = await plane.registry.VerifyAdapter(request)
    assert not changed.matches
    assert changed.registered_digest != changed.found_digest
    assert (await plane.registry.VerifyAdapter(pb.VerifyAdapterRequest(name="voice"))).matches


async def test_base_model_is_found_by_its_last_part(redis_url: str, tmp_path: Path) -> None:
    async with running(redis_url, adapter_roots=[tmp_path]) as plane:
        await plane.join()
        source = make_adapter_dir(tmp_path / "1", base_model_name="/mnt/models/LLAMA/")
        assert (await plane.register("voice", source)).version.base_model == "tiny/llama"


async def test_base_models_are_listed_and_stay(plane: ControlPlane) -> None:
    await plane.join()
    listed = await plane.registry.ListBaseModels(pb.ListBaseModelsRequest())
    assert [base.name for base in listed.base_models] == ["tiny/llama"]
    base = listed.base_models[0]
    assert {m.module: (m.in_features, m.out_features) for m in base.layer_modules} == dict(
        TINY_BASE.layer_modules
    )
    assert base.max_context_tokens == base_model(TINY_BASE).max_context_tokens


async def test_modules_that_some_layers_have_are_announced_and_checked(
    plane: ControlPlane, tmp_path: Path
) -> None:
    base = replace(TINY_BASE, module_layers={"self_attn.q_proj": (1,)})
    await plane.join(base=base)
    listed = await plane.registry.ListBaseModels(pb.ListBaseModelsRequest())
    layers = {each.module: tuple(each.layers) for each in listed.base_models[0].layer_modules}
    assert layers == {**dict.fromkeys(base.layer_modules, ()), "self_attn.q_proj": (1,)}
    error = await failure(plane.register("voice", make_adapter_dir(tmp_path / "1")))
    assert error.reason == "UNKNOWN_MODULE" and "layers.0.self_attn.q_proj" in error.message


async def test_parts_of_mixtures_are_announced_and_checked(
    plane: ControlPlane, tmp_path: Path
) -> None:
    down = "mlp.experts.down_proj"
    experts = {
        down: MixtureModule(24, 16, 3, (1,)),
        "mlp.gate": MixtureModule(16, 3, 0, (1,)),
    }
    await plane.join(base=replace(TINY_BASE, mixture_modules=experts))
    listed = await plane.registry.ListBaseModels(pb.ListBaseModelsRequest())
    assert {
        each.module: MixtureModule(
            each.in_features, each.out_features, each.num_experts, tuple(each.layers)
        )
        for each in listed.base_models[0].mixture_modules
    } == experts

    def adapter(name: str, num_experts: int) -> Path:
        path = make_adapter_dir(
            tmp_path / name,
            targets=(),
            config={"target_modules": [], "target_parameters": [down]},
        )
        prefix = "base_model.model.model.layers.1.mlp.experts.lora_"
        ranks = 4 * num_experts
        matrices = {"A": np.ones((ranks, 24)), "B": np.ones((16, ranks))}
        save_file(
            {f"{prefix}{each}.weight": m.astype("float32") for each, m in matrices.items()},
            path / "adapter_model.safetensors",
        )
        return path

    version = (await plane.register("voice", adapter("1", 3))).version
    assert (version.rank, list(version.target_modules)) == (4, [down])
    error = await failure(plane.register("other", adapter("2", 4)))
    assert error.reason == "SHAPE_MISMATCH" and "has 3" in error.message


async def test_rollback_never_lands_on_the_current_version(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await three_versions(plane, tmp_path)
    for version in (2, 3):  # history 1, 2, 3, 2
        await plane.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=version))
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice", version=2))
    # history 1, 3: the last entry is the current version itself.
    rolled = await plane.registry.RollbackAdapter(pb.RollbackAdapterRequest(name="voice"))
    assert rolled.adapter.current_version == 1


async def test_a_base_model_that_changes_meanwhile_is_checked_again(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model comes up under the name after the check and before the entry."""
    await plane.join(fingerprint="a" * 64)
    source = make_adapter_dir(tmp_path / "1")
    smaller = replace(TINY_BASE, num_layers=1)
    checked: list[int] = []
    check = Intake.check_base

    async def then_change(self: Intake, manifest: Any, base: Any, *, explicit: bool) -> None:
        await check(self, manifest, base, explicit=explicit)
        checked.append(base.num_layers)
        await plane.join(base=smaller, fingerprint="b" * 64, incarnation=2)

    monkeypatch.setattr(Intake, "check_base", then_change)
    error = await failure(plane.register("voice", source))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "UNKNOWN_MODULE")
    assert checked == [2]
    assert (await plane.registry.ListAdapters(pb.ListAdaptersRequest())).total_size == 0


async def test_versions_and_aliases_are_bounded(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_VERSIONS", 3)
    monkeypatch.setattr(registry, "MAX_ALIASES", 1)
    await three_versions(plane, tmp_path)
    error = await failure(plane.register("voice", make_adapter_dir(tmp_path / "4", seed=4)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "TOO_MANY_VERSIONS")
    assert not (await plane.register("voice", tmp_path / "1")).created
    request = pb.SetAliasRequest(alias=pb.Alias(name="one", adapter="voice"))
    for _ in range(2):  # moving one is not a second one
        await plane.registry.SetAlias(request)
    request = pb.SetAliasRequest(alias=pb.Alias(name="two", adapter="voice"))
    error = await failure(plane.registry.SetAlias(request))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "TOO_MANY_ALIASES")


async def test_pages_end_early_rather_than_outgrow_a_message(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_MAX_PAGE_CHARS", 1500)
    await plane.join()
    source = make_adapter_dir(tmp_path / "1")
    for i in range(5):
        await plane.register(f"a{i}", source)
    names, token, num_pages = [], "", 0
    while not num_pages or token:
        page = await plane.registry.ListAdapters(pb.ListAdaptersRequest(page_token=token))
        names += [adapter.name for adapter in page.adapters]
        token, num_pages = page.next_page_token, num_pages + 1
    assert names == [f"a{i}" for i in range(5)]
    assert num_pages > 1
