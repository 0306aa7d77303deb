"""The manifests for Kubernetes against each other, the image, and the command line."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.test_compose import SERVICES, parsed_command
from tests.helpers.up import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
NAME = "app.kubernetes.io/name"
OURS = ("control-plane", "gateway", "data-plane")


def resources() -> Iterator[dict[str, Any]]:
    for file in KUSTOMIZATION["resources"]:
        yield from yaml.safe_load_all((FOLDER / "base" / file).read_text())


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in resources() if each["kind"] == kind}


WORKLOADS = of_kind("Deployment") | of_kind("StatefulSet")
PODS = {name: each["spec"]["template"]["spec"] for name, each in WORKLOADS.items()}


def container(name: str) -> dict[str, Any]:
    (only,) = PODS[name]["containers"]
    return only


def literals(name: str, folder: str = "base") -> dict[str, str]:
    made = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    (lines,) = (each["literals"] for each in made["configMapGenerator"] if each["name"] == name)
    return dict(line.split("=", 1) for line in lines)


def parameters(name: str) -> dict[str, Any]:
    """Of the role, as its command takes them."""
    pod = container(name)
    own = {each["name"]: each.get("value", "1.2.3.4") for each in pod.get("env", ())}
    shared = [literals(each["configMapRef"]["name"]) for each in pod.get("envFrom", ())]
    variables = {key: value for part in (own, *shared) for key, value in part.items()}
    args = [re.sub(r"\$\((\w+)\)", lambda at: variables[at[1]], each) for each in pod["args"]]
    given = {key: value for key, value in variables.items() if key.startswith("CHORALE_")}
    return parsed_command(args, given)


@pytest.mark.parametrize("name", OURS)
def test_commands_and_variables_are_the_clis_own(name: str) -> None:
    found = parameters(name)
    ports = {each["name"]: each["containerPort"] for each in container(name)["ports"]}
    assert found["host"] == "0.0.0.0"
    assert ports["grpc"] == found.get("grpc_port", found.get("port"))
    if name == "gateway":
        assert ports["http"] == found["http_port"]
    else:
        assert ports["metrics"] == found["metrics_port"]
        assert found["adapter_root"] == ["/opt/chorale/demo/adapters"] and not found["allow_source"]
    if name == "data-plane":
        assert (found["advertise"], found["data_plane_id"]) == ("1.2.3.4", "1.2.3.4")
        assert found["model"] == "/opt/chorale/demo/chorale-demo" and found["device"] == "cpu"


@pytest.mark.parametrize("name", PODS)
def test_pods_keep_to_the_restricted_standard_and_write_to_volumes_only(name: str) -> None:
    pod, context = PODS[name], container(name)["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    volumes = {each["name"] for each in pod.get("volumes", ())}
    claims = WORKLOADS[name]["spec"].get("volumeClaimTemplates", ())
    volumes |= {each["metadata"]["name"] for each in claims}
    assert {each["name"] for each in container(name)["volumeMounts"]} == volumes
    if name != "redis":
        assert pod["securityContext"]["runAsUser"] == 10001
        # Kubernetes would set variables such as DATA_PLANE_PORT for each service.
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("name", OURS)
def test_probes_ask_the_health_service_and_stopping_waits_for_streams(name: str) -> None:
    pod, port = container(name), parameters(name)
    for probe in ("startupProbe", "readinessProbe"):
        assert pod[probe]["grpc"] == {"port": port.get("grpc_port", port.get("port"))}
    assert "livenessProbe" not in pod
    grace_s = PODS[name]["terminationGracePeriodSeconds"]
    assert grace_s >= port.get("drain_timeout", 2.0) + 5


def test_services_lead_to_pods_and_are_what_the_others_call() -> None:
    for name, service in of_kind("Service").items():
        assert service["spec"]["selector"] == {NAME: name}
        labels = WORKLOADS[name]["spec"]["template"]["metadata"]["labels"]
        assert labels == WORKLOADS[name]["spec"]["selector"]["matchLabels"] == {NAME: name}
        opened = {each["containerPort"] for each in container(name)["ports"]}
        assert {each["port"] for each in service["spec"]["ports"]} <= opened
    for name in ("gateway", "data-plane"):
        assert parameters(name)["control_plane"] == "control-plane:50050"
    assert parameters("control-plane")["redis"].startswith("redis://redis:6379/")
    for name, each in of_kind("StatefulSet").items():
        assert each["spec"]["serviceName"] == name
    budgets = of_kind("PodDisruptionBudget")
    assert {name: each["spec"]["selector"]["matchLabels"] for name, each in budgets.items()} == {
        name: {NAME: name} for name in ("control-plane", "gateway")
    }


def test_secrets_and_files_are_where_the_options_say() -> None:
    for name, files in (
        ("control-plane", {"fleet-token", "redis-password"}),
        ("data-plane", {"fleet-token"}),
        ("redis", {"redis-password"}),
    ):
        (secret,) = (each["secret"] for each in PODS[name]["volumes"] if "secret" in each)
        assert secret["secretName"] == "chorale"
        assert {each["path"] for each in secret["items"]} == files
        (mount,) = (m for m in container(name)["volumeMounts"] if m["name"] == "secrets")
        assert mount["mountPath"] == "/run/chorale" and mount["readOnly"]
        for variable in container(name).get("env", ()):
            if variable["name"].endswith("_FILE"):
                assert variable["value"].removeprefix("/run/chorale/") in files
    assert "secret" not in str(PODS["gateway"]), "gateways know no secret"
    (cache,) = (m for m in container("data-plane")["volumeMounts"] if m["name"] == "cache")
    assert parameters("data-plane")["disk_cache_dir"].startswith(cache["mountPath"] + "/")


def test_redis_has_the_settings_of_compose() -> None:
    (script,) = container("redis")["command"][2:]
    words = script.replace("\\\n", " ").split()
    for word in SERVICES["redis"]["command"][2:]:
        assert (word or '""') in words, word


def test_only_who_must_may_call() -> None:
    allowed: dict[str, dict[int, set[str]]] = {}
    for name, policy in of_kind("NetworkPolicy").items():
        assert policy["spec"]["podSelector"]["matchLabels"] == {NAME: name}
        for rule in policy["spec"]["ingress"]:
            callers = set[str]()
            for each in rule.get("from", ({"podSelector": {"matchLabels": {NAME: "*"}}},)):
                chosen = each["podSelector"]
                callers |= set(chosen.get("matchLabels", {}).values())
                for expression in chosen.get("matchExpressions", ()):
                    assert (expression["key"], expression["operator"]) == (NAME, "In")
                    callers |= set(expression["values"])
            for port in rule["ports"]:
                allowed.setdefault(name, {})[port["port"]] = callers
    assert allowed == {
        "redis": {6379: {"control-plane"}},
        "control-plane": {50050: {"gateway", "data-plane"}, 9090: {"*"}},
        "data-plane": {50052: {"gateway", "control-plane"}, 9090: {"*"}},
    }


def test_the_gpu_folder_changes_what_is_there() -> None:
    gpu = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    assert gpu["resources"] == ["../base"] and gpu["namespace"] == KUSTOMIZATION["namespace"]
    assert literals("data-plane", "gpu") == {"CHORALE_DEVICE": "cuda"}
    (patch,) = gpu["patches"]
    assert patch["target"] == {"kind": "StatefulSet", "name": "data-plane"}
    image, limit = yaml.safe_load(patch["patch"])
    assert image["value"] == "chorale:cuda"
    assert limit["path"].startswith("/spec/template/spec/containers/0/resources/limits/")
    assert "limits" in container("data-plane")["resources"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_takes_them(folder: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "StatefulSet"]
    images = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]["containers"][0]["image"]
        for each in made
    }
    tag = {"base": "local", "gpu": "cuda"}[folder]
    assert images == {"redis": "redis:7", "data-plane": f"chorale:{tag}"}
