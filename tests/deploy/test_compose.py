"""The files for Docker against each other, and against the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.helpers.compose import entrypoint, load, mounts, seconds, start_order
from tests.helpers.up import ROOT, chorale_environment

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SERVICES: dict[str, Any] = load()["services"]
OURS = ("control-plane", "gateway", "data-plane")
# Prints what a command makes of its arguments and the environment, and which variables it knows.
_PARSE = """
import json, sys, typer
known = []
if sys.argv[1] == "data-plane":
    from dataplane.main import app
    command = typer.main.get_command(app)
else:
    from controlplane.cli.app import app
    whole = typer.main.get_command(app)
    command = whole.commands[sys.argv[1]]
    known += [param.envvar for param in whole.params if param.envvar]
context = command.make_context(sys.argv[1], sys.argv[2:])
known += [param.envvar for param in command.params if param.envvar]
print(json.dumps([context.params, known], default=str))
"""
SET = {
    "CHORALE_ADAPTERS_DIR": "./adapters",
    "CHORALE_ALLOW_HOST": "api.example *.b.example",
    "CHORALE_ALLOW_ORIGIN": "https://app.example http://localhost:3000",
    "CHORALE_ALLOW_PRIVATE_HOST": "minio:9000",
    "CHORALE_ALLOW_SOURCE": "hf://some-org https://example.org/adapters",
    "CHORALE_API_KEYS_DIR": "./keys",
    "CHORALE_BIND": "0.0.0.0",
    "CHORALE_CUDA_GRAPHS": "false",
    "CHORALE_DATA_PLANES": "3",
    "CHORALE_DEVICE": "auto",
    "CHORALE_DRAIN_TIMEOUT": "60",
    "CHORALE_DISK_CACHE_BYTES": "3",
    "CHORALE_DTYPE": "bfloat16",
    "CHORALE_FLEET_TLS_DIR": "./fleet-tls",
    "CHORALE_HOST_CACHE_BYTES": "4",
    "CHORALE_HTTP_TIMEOUT": "5.5",
    "CHORALE_MAX_ADAPTER_BYTES": "6",
    "CHORALE_MAX_BATCH_TOKENS": "7",
    "CHORALE_MAX_BLOB_BYTES": "8",
    "CHORALE_MAX_CONCURRENT_REQUESTS": "9",
    "CHORALE_MAX_CONTEXT_TOKENS": "10",
    "CHORALE_MAX_PRIORITY": "2",
    "CHORALE_MAX_RUNNING": "11",
    "CHORALE_MODEL": "some-org/some-model",
    "CHORALE_MODEL_NAME": "some-model",
    "CHORALE_NUM_THREADS": "12",
    "CHORALE_SPECULATIVE_TOKENS": "4",
    "CHORALE_POOL_BYTES": "13",
    "CHORALE_PREFETCH": "false",
    "CHORALE_PREFIX_CACHE_PER_TENANT": "true",
    "CHORALE_PREFETCH_BYTES_PER_S": "14",
    "CHORALE_STOP_GRACE_PERIOD": "70s",
    "CHORALE_TLS_CA_DIR": "./tls-ca",
    "CHORALE_TLS_DIR": "./tls",
    "CHORALE_TLS_SERVER_NAME": "llm.example",
    "CHORALE_TTFT_SLO": "0.5",
}


def parsed(name: str, variables: Mapping[str, str], gpu: bool = False) -> dict[str, Any]:
    """The service's parameters as its command takes them."""
    definition = load(variables=variables)["services"][name]
    environment = dict(definition.get("environment", {}))
    if gpu:
        environment |= load("compose.gpu.yaml", variables)["services"][name]["environment"]
    assert definition["command"][0] == name
    return parsed_command(definition["command"], environment)


def parsed_command(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What the image's command makes of them."""
    command = [*entrypoint(), *arguments]
    assert command[0] == "chorale"
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PARSE, *command[1:]],
        env=chorale_environment(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    params, known = json.loads(done.stdout)
    given = {variable for variable in environment if variable.startswith("CHORALE_")}
    assert given - {"CHORALE_ADDRESS"} <= set(known), "a variable that the command does not know"
    return params


@pytest.mark.parametrize("name", OURS)
def test_the_commands_and_variables_are_the_clis_own(name: str) -> None:
    unset, changed = parsed(name, {}), parsed(name, SET)
    assert unset["host"] == "0.0.0.0"
    if name != "gateway":
        assert unset["adapter_root"] == ["/adapters", "/opt/chorale/demo/adapters"]
        assert not unset["allow_source"] and unset["max_adapter_bytes"] == 4 << 30
        assert changed["allow_source"] == ["hf://some-org", "https://example.org/adapters"]
        assert changed["max_adapter_bytes"] == 6
    expected = {
        "control-plane": {
            "max_blob_bytes": 8,
            "max_priority": 2,
            "prefix_cache_per_tenant": True,
            "prefetch": False,
            "prefetch_bytes_per_s": 14,
        },
        "gateway": {
            "max_concurrent_requests": 9,
            "http_timeout": 5.5,
            "allow_host": ["api.example", "*.b.example"],
            "allow_origin": ["https://app.example", "http://localhost:3000"],
            "drain_timeout": 60.0,
            "api_keys_file": "/run/api-keys/keys.json",
            "tls_cert_file": "/run/tls/cert.pem",
            "tls_key_file": "/run/tls/key.pem",
        },
        "data-plane": {
            "model": "some-org/some-model",
            "model_name": "some-model",
            "device": "auto",
            "drain_timeout": 60.0,
            "dtype": "bfloat16",
            "disk_cache_bytes": 3,
            "host_cache_bytes": 4,
            "max_batch_tokens": 7,
            "max_context_tokens": 10,
            "max_running": 11,
            "num_threads": 12,
            "pool_bytes": 13,
            "speculative_tokens": 4,
            "ttft_slo": 0.5,
        },
    }[name]
    assert {key: changed[key] for key in expected} == expected
    for file in ("cert", "key", "ca"):
        option = f"fleet_tls_{file}_file"
        assert (unset[option], changed[option]) == (None, f"/run/fleet-tls/{file}.pem")


def test_commands_and_health_checks_go_over_tls_where_it_is_on() -> None:
    for variables, scheme, ca in (({}, "", ""), (SET, "grpcs://", "/run/tls-ca/ca.pem")):
        services = load(variables=variables)["services"]
        gateway, operator = services["gateway"], services["control-plane"]["environment"]
        assert gateway["healthcheck"]["test"][-1] == f"--address={scheme}127.0.0.1:50051"
        assert operator["CHORALE_ADDRESS"] == f"{scheme}gateway:50051"
        for environment in (gateway["environment"], operator):
            assert environment["CHORALE_TLS_CA_FILE"] == ca
            name = variables.get("CHORALE_TLS_SERVER_NAME", "")
            assert environment["CHORALE_TLS_SERVER_NAME"] == name
        for name in ("control-plane", "data-plane"):
            assert "--address=fleet://127.0.0.1:" in services[name]["healthcheck"]["test"][-1]


def test_the_gpu_file_asks_for_a_gpu_and_the_image_for_it() -> None:
    services = load("compose.gpu.yaml")["services"]
    assert list(services) == ["data-plane"]
    service = services["data-plane"]
    assert service["image"] != SERVICES["data-plane"]["image"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    params = parsed("data-plane", {}, gpu=True)
    assert params["device"] == "cuda" and params["cuda_graphs"] is None
    assert parsed("data-plane", SET, gpu=True)["cuda_graphs"] is False
    assert service["build"]["args"] == {"DEVICE": "cuda"}
    assert re.findall(r"^ +(\w+)\) .*pip", DOCKERFILE, re.MULTILINE) == ["cpu", "cuda"]


def test_every_variable_of_ours_is_tried_here() -> None:
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "compose.gpu.yaml").read_text()
    elsewhere = {"CHORALE_IMAGE", "CHORALE_CUDA_IMAGE", "CHORALE_REDIS_IMAGE", "CHORALE_GPU"}
    elsewhere |= {"CHORALE_MODELS_DIR", "CHORALE_GRPC_PORT", "CHORALE_HTTP_PORT"}
    assert set(re.findall(r"\$\{(CHORALE_\w+)", text)) == set(SET) | elsewhere


def test_what_others_wait_for_can_come_true() -> None:
    assert set(start_order(SERVICES)) == set(SERVICES)
    for service in SERVICES.values():
        for other, wanted in service.get("depends_on", {}).items():
            one_shot = SERVICES[other]["restart"] == "no"
            completed = wanted["condition"] == "service_completed_successfully"
            assert one_shot == completed
            assert one_shot or "healthcheck" in SERVICES[other]
    for name in (*OURS, "redis"):
        service = SERVICES[name]
        assert "healthcheck" in service and service["restart"] == "unless-stopped"
        assert seconds(service["stop_grace_period"]) >= 10
        if "CHORALE_DRAIN_TIMEOUT" in service.get("environment", {}):
            set_period = load(variables=SET)["services"][name]["stop_grace_period"]
            assert seconds(set_period) == 70


def test_no_secret_stands_in_the_files() -> None:
    for definition in (SERVICES, load("compose.gpu.yaml")["services"]):
        for service in definition.values():
            for variable, value in service.get("environment", {}).items():
                if variable.endswith("_FILE") and value:
                    assert PurePosixPath(value).parent == PurePosixPath("/run/chorale")
                elif re.search("TOKEN$|PASSWORD|SECRET|KEY", variable):
                    assert value == ""
            command = "\n".join(service.get("command", ()))
            assert not re.search(r'requirepass (?!"%s)|//\S*:\S*@|--fleet-token', command)
    assert "token_hex" in SERVICES["secrets"]["command"][0]
    assert not re.search(r"(?i)^(arg|env).*(token|password|secret)", DOCKERFILE, re.MULTILINE)


def test_volumes_and_paths_agree() -> None:
    volumes = load()["volumes"]
    used = {source for service in SERVICES.values() for source in mounts(service).values()}
    assert used == set(volumes)
    made = set(re.findall(r"(?<=\s)/(?:adapters|models|run|var)\S*(?=[\s])", DOCKERFILE))
    copied = re.findall(r"^COPY (examples/\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    for name, service in SERVICES.items():
        inside = mounts(service)
        if name != "redis":
            assert set(inside) <= made, "a new volume gets its owner from the image"
        words = [*service["command"], *service.get("environment", {}).values()]
        words += service.get("healthcheck", {}).get("test", [])
        for path in re.findall(r"(?<![\w./])/(?:[\w-]+/?)+", "\n".join(words)):
            below = [root for root in (*inside, *(to for _, to in copied)) if path.startswith(root)]
            assert below, f"{name}: {path} is in no volume, nor in the image"
    for source, _ in copied:
        assert (ROOT / source).is_dir()
    control_plane, data_plane = mounts(SERVICES["control-plane"]), mounts(SERVICES["data-plane"])
    assert control_plane["/adapters"] == data_plane["/adapters"]
    for name, writable in {
        "secrets": {"/run/chorale"},
        "redis": {"/data"},
        "control-plane": {"/var/lib/chorale/blobs"},
        "gateway": set[str](),
        "data-plane": {"/var/cache/chorale"},
    }.items():
        given = SERVICES[name].get("volumes", [])
        assert {v.split(":")[1] for v in given if not v.endswith(":ro")} == writable
    own = load(variables={**SET, "CHORALE_MODELS_DIR": "/srv/models"})["services"]["data-plane"]
    assert mounts(own)["/adapters"] == "./adapters" and mounts(own)["/models"] == "/srv/models"


def test_only_the_gateway_is_published_and_only_on_the_loopback_address() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:50051:50051", "127.0.0.1:8000:8000"]}
    assert load()["networks"]["store"] == {"internal": True}
    on_store = {name for name, s in SERVICES.items() if "store" in s.get("networks", ())}
    assert on_store == {"redis", "control-plane"} and SERVICES["redis"]["networks"] == ["store"]
    assert SERVICES["secrets"]["network_mode"] == "none"
    assert not any("container_name" in service for service in SERVICES.values())
    scaled = load(variables=SET)["services"]["data-plane"]
    assert (SERVICES["data-plane"]["scale"], scaled["scale"]) == ("1", "3")


def test_nobody_is_root_or_may_become_it() -> None:
    for service in SERVICES.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert SERVICES["redis"]["user"] == "999:999"
    assert SERVICES["redis"]["group_add"] == ["10001"]
    assert re.fullmatch(r"redis:\d+", SERVICES["redis"]["image"])


def test_the_build_gets_what_the_wheel_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {PurePosixPath(line[1:]) for line in lines if line.startswith("!")}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    target = wheel["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*target["packages"], *target["force-include"], wheel["project"]["readme"]]
    needed += re.findall(r"^COPY ([\w/.]+\w) ", DOCKERFILE, re.MULTILINE)
    for path in map(PurePosixPath, needed):
        assert {path, *path.parents} & let_in, f".dockerignore leaves {path} out"


def test_the_image_alone_takes_the_adapters_that_compose_takes() -> None:
    roots = re.findall(r"CHORALE_ADAPTER_ROOT=(\S+)", DOCKERFILE)
    assert roots == [SERVICES["data-plane"]["environment"]["CHORALE_ADAPTER_ROOT"]]


def test_the_image_without_a_gpu_is_without_triton() -> None:
    ((condition, pattern),) = re.findall(
        r'if \[ "\$DEVICE" = (\w+) \]; then sed -i \'/(\S+)/d\' requirements.txt', DOCKERFILE
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left_out = [each for each in project["dependencies"] if re.search(pattern, each)]
    assert condition == "cpu" and [re.match(r"\w+", each)[0] for each in left_out] == ["triton"]  # type: ignore[index]
