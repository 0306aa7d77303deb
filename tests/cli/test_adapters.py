from __future__ import annotations

import json
from pathlib import Path

import pytest

from chorale import errors
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import admin_pb2 as admin_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway, adapter


def test_add_sends_an_absolute_path_and_labels(
    chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter("pirate", versions=2)
    response = pb.RegisterAdapterResponse(adapter=made, version=made.versions[0], created=True)
    gateway.answers["RegisterAdapter"] = response
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    result = chorale(
        "adapters", "add", "pirate", "files", "--label", "team=blue", "--label", "eq=a=b",
        "--base-model", "base",
    )  # fmt: skip
    assert result.exit_code == 0
    assert result.stdout == f"added pirate@2 {'2' * 12}\n"
    (request,) = gateway.requests
    assert (request.name, request.source) == ("pirate", str(tmp_path / "files"))
    assert dict(request.labels) == {"team": "blue", "eq": "a=b"}
    assert request.base_model == "base"
    gateway.answers["RegisterAdapter"] = pb.RegisterAdapterResponse(
        adapter=made, version=made.versions[1], created=False
    )
    again = chorale("adapters", "add", "pirate", "file:///elsewhere")
    assert "registered before" in again.stdout
    assert gateway.requests[-1].source == "file:///elsewhere"


def test_add_may_keep_the_current_version(chorale: Chorale, gateway: ScriptedGateway) -> None:
    made = adapter("a", versions=2)
    made.current_version = 1
    response = pb.RegisterAdapterResponse(adapter=made, version=made.versions[0], created=True)
    gateway.answers["RegisterAdapter"] = response
    result = chorale("adapters", "add", "a", "/a", "--keep-current")
    assert result.stdout == f"added a@2 {'2' * 12}; current is still 1\n"
    assert gateway.requests[-1].keep_current and not gateway.requests[-1].must_be_new


def test_add_of_nothing_is_not_the_current_directory(
    chorale: Chorale, gateway: ScriptedGateway
) -> None:
    """As when a variable of a shell is empty."""
    gateway.answers["RegisterAdapter"] = errors.InvalidArgumentError("SOURCE_INVALID", "empty")
    assert chorale("adapters", "add", "x", "").exit_code == 2
    (request,) = gateway.requests
    assert request.source == ""


@pytest.mark.parametrize("label", ["novalue", "=x", ""])
def test_bad_labels(chorale: Chorale, gateway: ScriptedGateway, label: str) -> None:
    result = chorale("adapters", "add", "pirate", "/x", "--label", label)
    assert result.exit_code == 2 and "LABEL_INVALID" in result.stderr
    assert gateway.requests == []


def test_list_takes_every_page(chorale: Chorale, gateway: ScriptedGateway) -> None:
    pages = {
        "": pb.ListAdaptersResponse(adapters=[adapter("a", alias="prod")], next_page_token="2"),
        "2": pb.ListAdaptersResponse(adapters=[adapter("b", versions=3)]),
    }
    gateway.answers["ListAdapters"] = lambda request: pages[request.page_token]
    table = chorale("adapters", "list", "--base-model", "base")
    assert table.exit_code == 0
    for text in ("a", "prod", "q_proj v_proj", "4.0 KiB", "24", "chorale-demo", "2 adapters"):
        assert text in table.stdout
    assert {request.base_model for request in gateway.requests} == {"base"}
    found = json.loads(chorale("adapters", "list", "--json").stdout)
    assert [one["name"] for one in found["adapters"]] == ["a", "b"]
    assert found["adapters"][0] == {
        "name": "a",
        "current_version": 1,
        "versions": [
            {
                "version": 1,
                "digest": "1" * 64,
                "source": "file:///adapters/a",
                "base_model": "chorale-demo",
                "rank": 8,
                "target_modules": ["self_attn.q_proj", "self_attn.v_proj"],
                "size_bytes": 4096,
                "created_at": "2026-01-02T03:04:05Z",
                "labels": {"team": "blue"},
                "private": False,
                "merge": None,
                "invocation_tokens": [],
            }
        ],
        "aliases": [{"name": "prod", "adapter": "a", "version": 0, "targets": []}],
    }


def test_list_of_none_says_what_to_do(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["ListAdapters"] = pb.ListAdaptersResponse()
    assert "chorale adapters add" in chorale("adapters", "list").stdout
    assert json.loads(chorale("adapters", "list", "--json").stdout) == {"adapters": []}


def test_what_others_wrote_cannot_steer_the_terminal(
    chorale: Chorale, gateway: ScriptedGateway
) -> None:
    made = adapter("a")
    made.versions[0].labels["evil"] = "\x1b[31mred\x07\n[bold]"
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=1)
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse()
    shown = chorale("adapters", "show", "a").stdout
    assert "\x1b" not in shown and "\x07" not in shown and "[31mred [bold]" in shown


def test_show(chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path) -> None:
    data_dir = ("--data-dir", str(tmp_path))
    made = adapter("a", versions=2, alias="prod")
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=1)
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse()
    shown = chorale("adapters", "show", "a@1", *data_dir).stdout
    for text in ("current version 2", "alias prod", "1" * 64, "2" * 64, "label team"):
        assert text in shown
    assert "on none of 0 data planes" in shown
    view = json.loads(chorale("adapters", "show", "a@1", "--json", *data_dir).stdout)
    assert view["resolved_version"] == 1
    assert [one["version"] for one in view["adapter"]["versions"]] == [2, 1]
    assert (view["residency"], view["loads"]) == ([], None)


def test_show_tells_from_where_on_an_adapter_is_activated(
    chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    made = adapter("a", versions=2)
    made.versions[0].invocation_tokens.extend([5, 31, 5])
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=2)
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse()
    data_dir = ("--data-dir", str(tmp_path))
    shown = chorale("adapters", "show", "a", *data_dir).stdout
    assert shown.count("activated") == 1 and "last tokens 5 31 5 of the prompt" in shown
    view = json.loads(chorale("adapters", "show", "a", "--json", *data_dir).stdout)
    assert [one["invocation_tokens"] for one in view["adapter"]["versions"]] == [[5, 31, 5], []]


def test_show_tells_tiers_and_timings(
    chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    made = adapter("a", versions=2)
    one, two = made.versions[1].digest, made.versions[0].digest
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=1)
    other = "e" * 64
    planes = [
        fleet_pb.DataPlane(
            data_plane_id=f"dp-{n}",
            endpoint=gateway.address,
            residency=fleet_pb.Residency(pool_digests=pool, host_digests=host, disk_digests=disk),
        )
        for n, (pool, host, disk) in enumerate([([other, two], [one], []), ([], [], [two])])
    ]
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse(data_planes=planes)
    times = {"read_s": 0.5, "parse_s": 0.25, "build_s": 0.125, "queue_s": 0.75, "copy_s": 0.375}
    loads = [
        admin_pb.AdapterLoad(digest=digest, tier="disk", origin="disk", size_bytes=2048, **times)
        for digest in (two, other)
    ]
    problem = {"origin": "hf", "reason": "SOURCE_TIMEOUT", "message": "it hangs", "age_s": 61.0}
    loads.append(admin_pb.AdapterLoad(digest=one, tier="source", **problem))
    progress = {"received_bytes": 3 << 20, "total_bytes": 7 << 20, "bytes_per_s": 2048.0}
    loading = admin_pb.AdapterLoading(digest=two, origin="hf", state="fetching", **progress)
    place = admin_pb.AdapterPlace(digest=one, pin_waits_for="PIN_POOL_FULL")
    gateway.answers["ListAdapterLoads"] = admin_pb.ListAdapterLoadsResponse(
        loads=loads, loading=[loading], places=[place]
    )
    (tmp_path / "fleet-token").write_text("secret\n")
    arguments = ("adapters", "show", "a", "--data-dir", str(tmp_path))
    shown = chorale(*arguments).stdout
    texts = ("dp-0", "dp-1", "pool", "host", "disk", "2.0 KiB", "0.125", "0.375", "0.750")
    texts += ("fetching", "3.0 MiB", "7.0 MiB", "2.0 KiB/s", "SOURCE_TIMEOUT", "it hangs", "61")
    for text in (*texts, "pin of version 1 waits on dp-1: PIN_POOL_FULL"):
        assert text in shown
    assert gateway.metadata[-1]["authorization"] == "Bearer secret"
    assert sorted(gateway.requests[-1].digests) == sorted((one, two))
    view = json.loads(chorale(*arguments, "--json").stdout)
    assert view["residency"] == [
        {"data_plane_id": "dp-0", "version": 2, "tier": "pool"},
        {"data_plane_id": "dp-1", "version": 2, "tier": "disk"},
        {"data_plane_id": "dp-0", "version": 1, "tier": "host"},
    ]
    load = {"version": 2, "from": "disk", "origin": "disk", "size_bytes": 2048, **times}
    load |= {"age_s": 0.0, "reason": "", "message": ""}
    empty = {"size_bytes": 0, **dict.fromkeys(times, 0.0)}
    failed = {"version": 1, "from": "source", **problem, **empty}
    expected = [{"data_plane_id": f"dp-{n}", **each} for n in range(2) for each in (load, failed)]
    assert view["loads"] == expected
    under_way = {"version": 2, "from": "hf", "state": "fetching", "waited_s": 0.0, **progress}
    assert view["loading"] == [{"data_plane_id": f"dp-{n}", **under_way} for n in range(2)]
    waits = {"version": 1, "waits_for": "PIN_POOL_FULL"}
    assert view["waiting_pins"] == [{"data_plane_id": f"dp-{n}", **waits} for n in range(2)]


def test_show_goes_on_without_data_planes_that_cannot_be_asked(
    chorale: Chorale, gateway: ScriptedGateway
) -> None:
    made = adapter("a")
    digest = made.versions[0].digest
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=1)
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse(
        data_planes=[
            fleet_pb.DataPlane(
                data_plane_id=name,
                endpoint=endpoint,
                residency=fleet_pb.Residency(host_digests=[digest]),
            )
            for name, endpoint in (("gone", "127.0.0.1:1"), ("dp-1", gateway.address))
        ]
    )
    load = admin_pb.AdapterLoad(digest=digest, tier="disk", origin="disk")
    gateway.answers["ListAdapterLoads"] = admin_pb.ListAdapterLoadsResponse(loads=[load])
    result = chorale("adapters", "show", "a", env={"CHORALE_FLEET_TOKEN": "secret"})
    assert result.exit_code == 0, result.stderr
    assert "data plane gone does not answer at 127.0.0.1:1" in result.stdout
    assert "last loads into host memory" in result.stdout
    gateway.answers["ListAdapterLoads"] = errors.UnauthenticatedError(
        "FLEET_TOKEN_WRONG", "another token"
    )
    shown = chorale("adapters", "show", "a", "--json", env={"CHORALE_FLEET_TOKEN": "old"})
    silent = [
        (each["data_plane_id"], each["reason"]) for each in json.loads(shown.stdout)["silent"]
    ]
    assert silent == [("gone", "DATA_PLANE_SILENT"), ("dp-1", "FLEET_TOKEN_WRONG")]


def test_promote_and_rollback(chorale: Chorale, gateway: ScriptedGateway) -> None:
    made = adapter("a", versions=2)
    gateway.answers["PromoteAdapter"] = pb.PromoteAdapterResponse(adapter=made)
    gateway.answers["RollbackAdapter"] = pb.RollbackAdapterResponse(adapter=made)
    assert chorale("adapters", "promote", "a", "2").stdout == "a is now version 2\n"
    assert (gateway.requests[-1].name, gateway.requests[-1].version) == ("a", 2)
    view = json.loads(chorale("adapters", "rollback", "a", "--json").stdout)
    assert view["adapter"]["current_version"] == 2
    assert chorale("adapters", "promote", "a", "0").exit_code == 2


def test_remove(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["RemoveAdapter"] = pb.RemoveAdapterResponse()
    assert chorale("adapters", "remove", "a").stdout == "removed a\n"
    assert gateway.requests[-1].version == 0
    assert chorale("adapters", "remove", "a", "--version", "3").stdout == "removed a@3\n"
    assert gateway.requests[-1].version == 3


def test_aliases(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["SetAlias"] = lambda request: pb.SetAliasResponse(alias=request.alias)
    gateway.answers["RemoveAlias"] = pb.RemoveAliasResponse()
    shown = chorale("adapters", "alias", "set", "prod", "a", "--version", "2").stdout
    assert shown == "prod now means a@2\n"
    assert chorale("adapters", "alias", "set", "prod", "a").stdout == "prod now means a\n"
    assert chorale("adapters", "alias", "remove", "prod").stdout == "removed alias prod\n"


def test_weighted_aliases(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["SetAlias"] = lambda request: pb.SetAliasResponse(alias=request.alias)
    result = chorale("adapters", "alias", "set", "prod", "a@3=95", "a@4=5", "b=0")
    assert result.stdout == "prod now means 95% a@3, 5% a@4, 0% b\n"
    (request,) = gateway.requests
    assert [(each.adapter, each.version, each.weight) for each in request.alias.targets] == [
        ("a", 3, 95),
        ("a", 4, 5),
        ("b", 0, 0),
    ]
    made = adapter("a", versions=2)
    made.aliases.append(request.alias)
    gateway.answers["GetAdapter"] = pb.GetAdapterResponse(adapter=made, resolved_version=1)
    gateway.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse()
    assert "alias prod -> 95% a@3, 5% a@4, 0% b\n" in chorale("adapters", "show", "a").stdout
    view = json.loads(chorale("adapters", "show", "a", "--json").stdout)
    (alias,) = view["adapter"]["aliases"]
    assert alias["targets"][1] == {"adapter": "a", "version": 4, "weight": 5}


def test_an_alias_of_one_target_is_sent_as_ever(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["SetAlias"] = lambda request: pb.SetAliasResponse(alias=request.alias)
    for target in ("a@3", "a@3=7"):
        assert chorale("adapters", "alias", "set", "prod", target).exit_code == 0
        assert gateway.requests[-1].alias == pb.Alias(name="prod", adapter="a", version=3)


@pytest.mark.parametrize(
    "targets",
    [
        ["a=1", "b"],
        ["a=x", "b=1"],
        ["a=-1", "b=1"],
        ["a=1", "a=2"],
        ["a@x=1", "b=1"],
        ["a@03=1", "b=1"],
        ["a@", "--json"],
        ["a=1", "b=1", "--version", "2"],
        ["a@1", "--version", "2"],
    ],
)
def test_targets_that_cannot_be_meant(
    chorale: Chorale, gateway: ScriptedGateway, targets: list[str]
) -> None:
    assert chorale("adapters", "alias", "set", "prod", *targets).exit_code == 2
    assert gateway.requests == []


def test_verify_fails_on_changed_content(chorale: Chorale, gateway: ScriptedGateway) -> None:
    same = pb.VerifyAdapterResponse(matches=True, registered_digest="a", found_digest="a")
    gateway.answers["VerifyAdapter"] = same
    assert chorale("adapters", "verify", "a").exit_code == 0
    changed = pb.VerifyAdapterResponse(registered_digest="a", found_digest="b")
    gateway.answers["VerifyAdapter"] = changed
    assert chorale("adapters", "verify", "a").exit_code == 4
    result = chorale("adapters", "verify", "a", "--json")
    assert result.exit_code == 4
    view = {"matches": False, "registered_digest": "a", "found_digest": "b"}
    assert json.loads(result.stdout) == view
