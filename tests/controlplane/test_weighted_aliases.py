"""Aliases of several targets: who gets which, what a change moves, and what is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from chorale.requests import alias_request
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import admission_pb2, fleet_pb2
from controlplane.registry import alias_check, registry
from controlplane.store import keys
from controlplane.store.embedded import EmbeddedRedis
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, ControlPlane, failure
from tests.helpers.redis import send

USERS = [f"user-{number}" for number in range(1000)]


@pytest.fixture
async def voices(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """`voice` with versions 1, 2 and 3 (current), and `other` with one."""
    await plane.join(max_running=64)
    for seed in (1, 2, 3):
        await plane.register("voice", make_adapter_dir(tmp_path / str(seed), seed=seed))
    await plane.register("other", tmp_path / "1")
    yield plane


async def set_alias(
    plane: ControlPlane, targets: Mapping[str, int], name: str = "prod"
) -> pb.Alias:
    request = alias_request(name, "", 0, targets)
    return (await plane.registry.SetAlias(request)).alias


async def serves(plane: ControlPlane, key: str, model: str = "prod") -> str:
    request = admission_pb2.AdmitRequest(model=model, routing_key=key)
    place = await plane.admission.Admit(request)
    return f"{place.model}@{place.adapter_version}"


async def served(
    plane: ControlPlane, model: str = "prod", users: Sequence[str] = USERS
) -> dict[str, str]:
    await plane.beat(max_running=64)
    turn = asyncio.Semaphore(50)  # gRPC cancels calls that nobody takes for 30 s

    async def name_for(user: str) -> str:
        async with turn:
            return await serves(plane, user, model)

    names = await asyncio.gather(*map(name_for, users))
    return dict(zip(users, names, strict=True))


async def served_to_few(plane: ControlPlane) -> dict[str, str]:
    """Where all are to get the same, or what they got, and no shares are counted."""
    return await served(plane, users=USERS[:200])


def is_likely(count: int, share: float) -> bool:
    """Within 4 standard deviations."""
    return abs(count - 1000 * share) <= 4 * sqrt(1000 * share * (1 - share))


async def test_each_target_has_its_share_and_each_user_one_target(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice@1": 60, "voice@2": 30, "other@1": 10, "voice@3": 0})
    first = await served(voices)
    counts = Counter(first.values())
    assert set(counts) == {"voice@1", "voice@2", "other@1"}
    for name, share in (("voice@1", 0.6), ("voice@2", 0.3), ("other@1", 0.1)):
        assert is_likely(counts[name], share), counts
    assert (await served_to_few(voices)).items() <= first.items()


async def test_without_a_key_each_request_is_drawn(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice@1": 50, "voice@2": 50})
    counts = Counter([await serves(voices, "") for _ in range(200)])
    assert min(counts["voice@1"], counts["voice@2"]) > 50


async def test_aliases_draw_apart(voices: ControlPlane) -> None:
    """Or the same users would try every canary."""
    for name in ("prod", "beta"):
        await set_alias(voices, {"voice@1": 50, "voice@2": 50}, name)
    one, two = await served(voices), await served(voices, "beta")
    assert is_likely(sum(one[user] == two[user] for user in USERS), 0.5)


async def test_a_canary_that_grows_gives_nobody_back(voices: ControlPlane) -> None:
    """5%, 10%, promoted, rolled back."""
    await set_alias(voices, {"voice@1": 95, "voice@2": 5})
    before = await served(voices)
    await set_alias(voices, {"voice@2": 10, "voice@1": 90})  # in whatever order
    after = await served(voices)
    moved = {user for user in USERS if before[user] != after[user]}
    assert is_likely(len(moved), 0.05)
    assert all(after[user] == "voice@2" for user in moved)
    await set_alias(voices, {"voice@1": 0, "voice@2": 100})
    assert set((await served_to_few(voices)).values()) == {"voice@2"}
    await set_alias(voices, {"voice@1": 100, "voice@2": 0})
    assert set((await served_to_few(voices)).values()) == {"voice@1"}
    await set_alias(voices, {"voice@1": 95, "voice@2": 5})
    assert (await served_to_few(voices)).items() <= before.items()


async def test_a_third_target_takes_from_both_and_moves_nobody_else(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice@1": 50, "voice@2": 50})
    before = await served(voices)
    await set_alias(voices, {"voice@1": 50, "voice@2": 50, "other": 25})
    after = await served(voices)
    moved = [user for user in USERS if before[user] != after[user]]
    assert is_likely(len(moved), 0.2)
    assert {after[user] for user in moved} == {"other@1"}
    assert {before[user] for user in moved} == {"voice@1", "voice@2"}


async def test_a_target_without_version_follows(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice": 50, "other@1": 50})
    before = await served_to_few(voices)
    await voices.registry.PromoteAdapter(pb.PromoteAdapterRequest(name="voice", version=1))
    after = await served_to_few(voices)
    assert set(before.values()) == {"voice@3", "other@1"}
    assert after == {
        user: "voice@1" if name == "voice@3" else name for user, name in before.items()
    }


async def test_targets_are_told_everywhere(voices: ControlPlane) -> None:
    made = await set_alias(voices, {"voice@1": 20, "other": 80})
    assert (made.adapter, made.version) == ("other", 0)
    assert [(each.adapter, each.version, each.weight) for each in made.targets] == [
        ("voice", 1, 20),
        ("other", 0, 80),
    ]
    found = await voices.registry.GetAdapter(pb.GetAdapterRequest(name="prod"))
    assert (found.adapter.name, found.resolved_version, found.alias) == ("other", 1, made)
    listed = await voices.registry.ListAdapters(pb.ListAdaptersRequest())
    assert [list(adapter.aliases) for adapter in listed.adapters] == [[made], [made]]
    # What was read can be written.
    again = (await voices.registry.SetAlias(pb.SetAliasRequest(alias=made))).alias
    assert again == made
    plain = await set_alias(voices, {"voice@1": 7})
    assert plain == pb.Alias(name="prod", adapter="voice", version=1)
    other = await voices.registry.GetAdapter(pb.GetAdapterRequest(name="other"))
    assert not other.adapter.aliases and not other.HasField("alias")


async def test_pages_end_early_for_many_targets_too(
    voices: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = await voices.registry.ListAdapters(pb.ListAdaptersRequest())
    assert len(listed.adapters) == 2
    for number in range(40):
        await set_alias(voices, {"voice@1": 1, "voice@2": 1, "other": 1}, f"alias-{number:03}")
    monkeypatch.setattr(registry, "_MAX_PAGE_CHARS", 4000)
    page = await voices.registry.ListAdapters(pb.ListAdaptersRequest())
    assert [adapter.name for adapter in page.adapters] == ["other"] and page.next_page_token


async def test_records_of_older_versions(voices: ControlPlane, redis_server: EmbeddedRedis) -> None:
    """They have an adapter and a version; and what they write over a new one leaves no trace."""
    send(redis_server, f'HSET "{keys.ALIAS}prod" adapter voice version 2')
    send(redis_server, f'SADD "{keys.ALIASES_OF}voice" prod')
    assert set((await served_to_few(voices)).values()) == {"voice@2"}
    await set_alias(voices, {"voice@1": 50, "other@1": 50})
    send(redis_server, f'DEL "{keys.ALIAS}prod"')
    send(redis_server, f'HSET "{keys.ALIAS}prod" adapter voice version 0')
    other = await voices.registry.GetAdapter(pb.GetAdapterRequest(name="other"))
    assert not other.adapter.aliases
    await voices.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="other"))
    assert await serves(voices, "x") == "voice@3"


async def test_what_is_a_target_stays(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice@1": 100, "voice@2": 0})
    for version in (1, 2):
        error = await failure(
            voices.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice", version=version))
        )
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "VERSION_HAS_ALIAS")
    await set_alias(voices, {"voice@1": 95, "other@1": 5})
    for name in ("voice", "other"):
        error = await failure(voices.registry.RemoveAdapter(pb.RemoveAdapterRequest(name=name)))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ALIAS_SHARED")
        assert error.metadata["alias"] == "prod"
    assert set((await served_to_few(voices)).values()) == {"voice@1", "other@1"}
    await set_alias(voices, {"voice@1": 95, "voice@2": 5})
    await voices.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="other"))
    await voices.registry.RemoveAdapter(pb.RemoveAdapterRequest(name="voice"))
    error = await failure(voices.registry.RemoveAlias(pb.RemoveAliasRequest(name="prod")))
    assert error.reason == "ALIAS_NOT_FOUND"


async def test_base_models_do_not_mix(voices: ControlPlane, tmp_path: Path) -> None:
    await voices.join("dp-1", base=replace(TINY_BASE, name="second"))
    moved = await voices.register("other", tmp_path / "1", base_model="second")
    assert moved.version.version == 2
    for targets in ({"voice@1": 1, "other": 1}, {"other@2": 1, "other@1": 0}):
        error = await failure(set_alias(voices, targets))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ALIAS_BASE_MIXED")
    promote, back = pb.PromoteAdapterRequest, pb.RollbackAdapterRequest(name="other")
    await voices.registry.PromoteAdapter(promote(name="other", version=1))
    await set_alias(voices, {"voice@1": 1, "other": 1})
    for call in (
        voices.registry.PromoteAdapter(promote(name="other", version=2)),
        voices.registry.RollbackAdapter(back),
        voices.register("other", tmp_path / "2", base_model="second"),
    ):
        error = await failure(call)
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ALIAS_BASE_MIXED")
        assert error.metadata["alias"] == "prod"
    found = await voices.registry.GetAdapter(pb.GetAdapterRequest(name="other"))
    assert (found.resolved_version, len(found.adapter.versions)) == (1, 2)
    await set_alias(voices, {"voice@1": 1, "voice@2": 1})
    rolled = await voices.registry.RollbackAdapter(back)
    assert rolled.adapter.current_version == 2, "the refused rollback took nothing of the history"


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ({"voice@1": 0, "voice@2": 0}, "ALIAS_TARGETS_INVALID"),
        ({"voice@1": 0}, "ALIAS_TARGETS_INVALID"),
        ({"voice@1": 1, "voice@2": alias_check.MAX_WEIGHT + 1}, "ALIAS_WEIGHT_INVALID"),
        ({f"voice@{n}": 1 for n in range(1, 18)}, "ALIAS_TARGETS_INVALID"),
        ({"voice@1": 1, "-": 1}, "NAME_INVALID"),
        ({"voice@1": 1, "voice@9": 1}, "VERSION_NOT_FOUND"),
        ({"voice@1": 1, "nobody": 1}, "ADAPTER_NOT_FOUND"),
    ],
)
async def test_what_is_no_alias_changes_nothing(
    voices: ControlPlane, targets: dict[str, int], reason: str
) -> None:
    await set_alias(voices, {"voice@2": 1})
    error = await failure(set_alias(voices, targets))
    assert error.reason == reason
    assert await serves(voices, "x") == "voice@2"


async def test_one_message_says_one_thing(voices: ControlPlane) -> None:
    target = pb.AliasTarget(adapter="voice", version=1, weight=1)
    for targets, adapter in (([target, target], ""), ([target], "other")):
        alias = pb.Alias(name="prod", adapter=adapter, targets=targets)
        error = await failure(voices.registry.SetAlias(pb.SetAliasRequest(alias=alias)))
        assert error.reason == "ALIAS_TARGETS_INVALID"


async def test_what_needs_one_version_refuses_several(voices: ControlPlane) -> None:
    def direct() -> fleet_pb2.DirectAdapterRequest:
        action = fleet_pb2.ADAPTER_ACTION_PREFETCH
        return fleet_pb2.DirectAdapterRequest(name="prod", action=action)

    await set_alias(voices, {"voice@1": 1, "voice@2": 1})
    for call in (
        voices.registry.VerifyAdapter(pb.VerifyAdapterRequest(name="prod")),
        voices.fleet.DirectAdapter(direct(), metadata=AUTHORIZATION),
    ):
        error = await failure(call)
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "ALIAS_AMBIGUOUS")
        assert "voice@1, voice@2" in error.message
    await set_alias(voices, {"voice@1": 1, "voice@2": 0})
    told = await voices.fleet.DirectAdapter(direct(), metadata=AUTHORIZATION)
    assert told.adapter == "voice@1"


async def test_routing_keys_are_bounded(voices: ControlPlane) -> None:
    await set_alias(voices, {"voice@1": 1, "voice@2": 1})
    assert await serves(voices, "ü" * 256)
    error = await failure(serves(voices, "u" * 257))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "ROUTING_KEY_INVALID")
