"""Whole directories of adapters: what is found, what is sent, how failures are told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chorale import errors
from chorale.v1 import adapter_registry_pb2 as pb
from controlplane.cli import add_all, bulk
from controlplane.cli.bulk import Bulk, Done
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway, adapter


def make(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Adapters a, team/b and team/c, and things that are none."""
    top = tmp_path / "tree"
    for name in ("team/c", "a", "team/b"):
        make(top / name)
    make(top / "a" / "checkpoint-500")
    (top / "empty").mkdir()
    (top / "team" / "README.md").write_text("x")
    (top / "team" / "loop").symlink_to(top)
    return top


def accepts(refused: Mapping[str, errors.ChoraleError] | None = None) -> Callable[[Any], Any]:
    def answer(request: pb.RegisterAdapterRequest) -> Any:
        if refused and request.name in refused:
            return refused[request.name]
        made = adapter(request.name)
        return pb.RegisterAdapterResponse(adapter=made, version=made.versions[0], created=True)

    return answer


def test_each_adapter_is_registered_by_its_path(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path
) -> None:
    gateway.answers["RegisterAdapter"] = accepts()
    result = chorale(
        "adapters", "add-all", str(tree), "--prefix", "x/", "--label", "by=me",
        "--base-model", "base",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "3 adapters: 3 added\n")
    sent = sorted(gateway.requests, key=lambda request: request.name)
    assert [(request.name, request.source) for request in sent] == [
        ("x/a", str(tree / "a")),
        ("x/team/b", str(tree / "team/b")),
        ("x/team/c", str(tree / "team/c")),
    ]
    for request in sent:
        assert (dict(request.labels), request.base_model) == ({"by": "me"}, "base")
        assert not request.must_be_new


def test_an_adapter_that_a_link_leads_to_has_both_names(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path
) -> None:
    gateway.answers["RegisterAdapter"] = accepts()
    (tree / "a-team").symlink_to(tree / "team")
    (tree / "A").symlink_to(tree / "a")
    assert chorale("adapters", "add-all", str(tree)).stdout == "6 adapters: 6 added\n"
    names = sorted(request.name for request in gateway.requests)
    assert names == ["A", "a", "a-team/b", "a-team/c", "team/b", "team/c"]


def test_links_to_each_other_are_not_followed_for_ever(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add_all, "MAX_FOLDERS", 500)
    for each in range(8):
        (tree / f"d{each}").mkdir()
        for other in range(8):
            (tree / f"d{each}" / f"l{other}").symlink_to(tree / f"d{other}")
    refused = chorale("adapters", "add-all", str(tree))
    assert refused.exit_code == 2 and "TOO_MANY_FOLDERS" in refused.stderr
    assert not gateway.requests


def test_upload_does_not_wait_for_a_pipe(
    chorale: Chorale, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    for name in ("x", "y"):
        make(tmp_path / name)
    os.mkfifo(tmp_path / "x" / "adapter_model.safetensors")
    (tmp_path / "y" / "adapter_model.safetensors").symlink_to("/dev/zero")
    result = chorale("adapters", "add-all", str(tmp_path), "--upload", "--json")
    failed = json.loads(result.stdout)["adapters"]
    assert [each["reason"] for each in failed] == ["ADAPTER_UNREADABLE"] * 2
    assert all("is not a regular file" in each["message"] for each in failed)


def test_failures_are_told_and_the_rest_goes_on(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path
) -> None:
    refused = {"a": errors.FailedPreconditionError("SHAPE_MISMATCH", "q_proj is too wide")}
    gateway.answers["RegisterAdapter"] = accepts(refused)
    result = chorale("adapters", "add-all", str(tree))
    assert result.exit_code == 4
    assert "3 adapters: 2 added, 1 failed" in result.stdout
    assert "SHAPE_MISMATCH" in result.stdout and "q_proj is too wide" in result.stdout
    shown = chorale("adapters", "add-all", str(tree), "--json")
    assert shown.exit_code == 4
    view = json.loads(shown.stdout)
    assert (view["added"], view["failed"], view["untried"]) == (2, 1, 0)
    assert view["adapters"][0] == {
        "name": "a",
        "source": str(tree / "a"),
        "state": "failed",
        "reason": "SHAPE_MISMATCH",
        "message": "q_proj is too wide",
    }
    assert view["adapters"][1]["version"] == 1


def test_new_leaves_what_exists(chorale: Chorale, gateway: ScriptedGateway, tree: Path) -> None:
    refused: dict[str, errors.ChoraleError] = {
        "a": errors.AlreadyExistsError("ADAPTER_EXISTS", "it exists"),
        "team/b": errors.AlreadyExistsError("NAME_TAKEN", "it is an alias"),
    }
    gateway.answers["RegisterAdapter"] = accepts(refused)
    result = chorale("adapters", "add-all", str(tree), "--new")
    assert all(request.must_be_new for request in gateway.requests)
    assert "1 added, 1 kept, 1 failed" in result.stdout and "NAME_TAKEN" in result.stdout
    assert result.exit_code == 4


def test_add_new(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["RegisterAdapter"] = errors.AlreadyExistsError("ADAPTER_EXISTS", "it exists")
    result = chorale("adapters", "add", "a", "/a", "--new")
    assert result.exit_code == 4 and "ADAPTER_EXISTS" in result.stderr
    assert gateway.requests[-1].must_be_new


def test_when_nobody_answers_any_more_the_rest_is_left(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_FIRST_PAUSE_S", 0.001)
    gateway.answers["RegisterAdapter"] = errors.UnavailableError(
        "STORE_UNAVAILABLE", "no Redis", retry_after_s=0.001
    )
    result = chorale("adapters", "add-all", str(tree), "--jobs", "1")
    assert result.exit_code == 5
    assert "1 failed, 2 untried" in result.stdout and "run the same again" in result.stdout
    assert {request.name for request in gateway.requests} == {"a"}
    assert len(gateway.requests) == bulk._MAX_ATTEMPTS


def test_what_passes_is_tried_again(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_FIRST_PAUSE_S", 0.001)
    busy: list[errors.ChoraleError] = [
        errors.ResourceExhaustedError("STORE_BUSY", "busy", retry_after_s=0.001) for _ in range(4)
    ]
    accept = accepts()
    gateway.answers["RegisterAdapter"] = lambda request: busy.pop() if busy else accept(request)
    assert chorale("adapters", "add-all", str(tree), "--jobs", "2").exit_code == 0
    assert len(gateway.requests) == 7


def test_jobs_are_bounded_and_one_failure_of_all_ends_them() -> None:
    inside, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def register(name: str, source: str) -> Done:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait(60)
        with lock:
            inside -= 1
        return Done("added", 1)

    wanted = [(f"a{number}", "/x") for number in range(30)]
    outcomes = Bulk(register, jobs=3).run(wanted)
    assert [outcome.name for outcome in outcomes] == [name for name, _ in wanted]
    assert most == 3

    tried: list[str] = []

    def breaks(name: str, source: str) -> Done:
        tried.append(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Bulk(breaks, jobs=1).run(wanted)
    assert tried == ["a0"]


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("nowhere", 3, "DIRECTORY_NOT_FOUND"),
        ("empty", 3, "NO_ADAPTERS"),
        ("a", 2, "DIRECTORY_IS_ADAPTER"),
    ],
)
def test_nothing_to_add(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path, what: str, code: int, reason: str
) -> None:
    result = chorale("adapters", "add-all", str(tree / what))
    assert (result.exit_code, gateway.requests) == (code, [])
    assert reason in result.stderr


def test_a_directory_that_cannot_be_read_is_not_passed_over(
    chorale: Chorale, gateway: ScriptedGateway, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("team"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = chorale("adapters", "add-all", str(tree))
    assert result.exit_code == 3 and "DIRECTORY_UNREADABLE" in result.stderr
    assert gateway.requests == []


def test_upload_sends_each(chorale: Chorale, gateway: ScriptedGateway, tree: Path) -> None:
    for path in ("a", "team/b", "team/c"):
        (tree / path / "adapter_model.safetensors").write_bytes(b"w")
    gateway.answers["GetUpload"] = pb.GetUploadResponse(offset=1)
    gateway.answers["UploadAdapter"] = pb.UploadAdapterResponse(source="blob:x")
    gateway.answers["RegisterAdapter"] = accepts()
    assert chorale("adapters", "add-all", str(tree), "--upload").exit_code == 0
    sources = [each.source for each in gateway.requests if hasattr(each, "must_be_new")]
    assert sources == ["blob:x"] * 3
    (tree / "a" / "adapter_model.safetensors").unlink()
    broken = chorale("adapters", "add-all", str(tree), "--upload")
    assert broken.exit_code == 4 and "ADAPTER_UNREADABLE" in broken.stdout
