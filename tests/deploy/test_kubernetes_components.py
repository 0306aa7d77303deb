"""What the components for Kubernetes change: keys and TLS, against the roles' own options."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_compose import parsed_command
from tests.deploy.test_kubernetes import FOLDER, WORKLOADS, container

COMPONENTS = FOLDER / "components"
SECRETS = {
    "api-keys": {"keys.json"},
    "tls": {"tls.crt", "tls.key", "ca.crt"},
    "fleet-tls": {"tls.crt", "tls.key", "ca.crt"},
}
# What has to be given, as base gives it from config maps and secrets.
NEEDED = {"data-plane": {"CHORALE_MODEL": "/m"}}


def patches(name: str) -> list[dict[str, Any]]:
    component = yaml.safe_load((COMPONENTS / name / "kustomization.yaml").read_text())
    assert component["kind"] == "Component"
    return [yaml.safe_load(each["patch"]) for each in component["patches"]]


def workloads(name: str) -> dict[str, dict[str, Any]]:
    """By name, the pod that the component changes."""
    changed = [each for each in patches(name) if each["kind"] != "Service"]
    for each in changed:
        assert each["kind"] == WORKLOADS[each["metadata"]["name"]]["kind"]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in changed}


def test_these_are_all() -> None:
    assert {path.name for path in COMPONENTS.iterdir()} == set(SECRETS)


@pytest.mark.parametrize("name", SECRETS)
def test_variables_are_the_roles_own_and_name_files_of_the_secret(name: str) -> None:
    pods = workloads(name)
    assert (
        set(pods)
        == {
            "api-keys": {"gateway"},
            "tls": {"gateway", "control-plane"},
            "fleet-tls": {"gateway", "control-plane", "data-plane"},
        }[name]
    )
    named = set[str]()
    for role, pod in pods.items():
        (changed,) = pod["containers"]
        assert changed["name"] == container(role)["name"] == role
        (mount,), (volume,) = changed["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"] and mount["readOnly"]
        files = {item["path"] for item in volume["secret"].get("items", ())} or SECRETS[name]
        variables = {each["name"]: each["value"] for each in changed["env"]}
        for variable, value in variables.items():
            if variable.endswith("_FILE"):
                folder, _, file = value.rpartition("/")
                assert folder == mount["mountPath"] and file in files
                named.add(file)
        parsed_command(container(role)["args"], {**NEEDED.get(role, {}), **variables})
    assert named == SECRETS[name]


def test_probes_speak_what_the_servers_do() -> None:
    gateway = workloads("tls")["gateway"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe"):
        https = {"scheme": "HTTPS", "port": 8000, "path": "/health"}
        assert gateway[probe] == {"grpc": None, "httpGet": https}
    for role, port in (("control-plane", 50050), ("data-plane", 50052)):
        changed = workloads("fleet-tls")[role]["containers"][0]
        for probe in ("startupProbe", "readinessProbe"):
            assert container(role)[probe]["grpc"]["port"] == port
            assert changed[probe]["grpc"] is None
            command = ["chorale", "health", f"--address=fleet://127.0.0.1:{port}"]
            assert changed[probe]["exec"]["command"] == command
            # A command of its own, which may stay for `--timeout`, 5 s.
            assert changed[probe]["timeoutSeconds"] > 5


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kustomize_takes_all_of_them_together(tmp_path: Path) -> None:
    where = {name: os.path.relpath(COMPONENTS / name, tmp_path) for name in SECRETS}
    mine = {
        "resources": [os.path.relpath(FOLDER / "base", tmp_path)],
        "components": list(where.values()),
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)
    }
    ports = made["Service", "gateway"]["spec"]["ports"]
    assert {each["port"]: each["appProtocol"] for each in ports} == {50051: "https", 8000: "https"}
    for role, kind, mounts in (
        ("gateway", "Deployment", {"tmp", "api-keys", "tls", "fleet-tls"}),
        ("control-plane", "Deployment", {"tmp", "secrets", "tls-ca", "fleet-tls"}),
        ("data-plane", "StatefulSet", {"tmp", "secrets", "cache", "fleet-tls"}),
    ):
        (only,) = made[kind, role]["spec"]["template"]["spec"]["containers"]
        assert {each["name"] for each in only["volumeMounts"]} == mounts
        variables = {each["name"]: each.get("value") for each in only["env"]}
        assert variables["CHORALE_FLEET_TLS_CA_FILE"] == "/run/fleet-tls/ca.crt"
        if role == "control-plane":
            assert variables["CHORALE_ADDRESS"] == "grpcs://gateway:50051"
            assert "CHORALE_FLEET_TOKEN_FILE" in variables, "what was there stays"
        for probe in ("startupProbe", "readinessProbe"):
            assert (
                "grpc" not in only[probe]
                and only[probe]["failureThreshold" if role == "gateway" else "periodSeconds"]
            )
