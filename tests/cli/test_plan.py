"""The command lines of the parts of `chorale up`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.cli.supervisor import plan

OPTIONS = plan.UpOptions(
    data_dir=Path("data"),
    host="127.0.0.1",
    grpc_port=0,
    http_port=0,
    num_data_planes=2,
    redis_url=None,
    model="model",
    model_name=None,
    adapter_roots=[],
    device="cpu",
    dtype="auto",
    pool_bytes=None,
    host_cache_bytes=None,
    disk_cache_bytes=None,
    max_context_tokens=None,
    num_threads=1,
)
ADDRESSES = plan.Addresses("127.0.0.1", 1, 2, 3)


@pytest.mark.parametrize(("redis", "emptied"), [(None, True), ("redis://h/0", False)])
def test_the_embedded_redis_takes_no_password_of_another(redis: str | None, emptied: bool) -> None:
    options = replace(OPTIONS, redis_url=redis)
    environment = plan.control_plane(options, ADDRESSES, redis or "unix:///socket").environment
    assert (environment.get("CHORALE_REDIS_PASSWORD_FILE") == "") is emptied


@pytest.mark.parametrize(
    ("asked", "flags"), [(None, []), (True, ["--http-registry"]), (False, ["--no-http-registry"])]
)
def test_whether_http_changes_the_registry_reaches_the_gateway(
    asked: bool | None, flags: list[str]
) -> None:
    options = replace(OPTIONS, http_registry=asked)
    command = plan.gateway(options, ADDRESSES).command
    assert [word for word in command if "registry" in word] == flags


def test_keys_and_certificates_reach_the_gateway() -> None:
    files = {
        "api_keys_file": Path("/etc/keys.json"),
        "tls_cert_file": Path("cert.pem"),
        "tls_key_file": Path("/etc/key.pem"),
    }
    command = plan.gateway(replace(OPTIONS, **files), ADDRESSES).command
    here = Path.cwd()
    assert command[-4:-1] == [
        "--api-keys-file=/etc/keys.json",
        f"--tls-cert-file={here}/cert.pem",
        "--tls-key-file=/etc/key.pem",
    ]
    bare = plan.gateway(OPTIONS, ADDRESSES).command
    assert not any("keys" in flag or "tls" in flag for flag in bare)


def test_allowed_hosts_reach_the_gateway() -> None:
    command = plan.gateway(replace(OPTIONS, allowed_hosts=["a.example", "*"]), ADDRESSES).command
    assert [word for word in command if "host=" in word and "allow" in word] == [
        "--allow-host=a.example",
        "--allow-host=*",
    ]


def test_allowed_origins_reach_the_gateway() -> None:
    options = replace(OPTIONS, allowed_origins=["https://a.example", "*"])
    command = plan.gateway(options, ADDRESSES).command
    assert [word for word in command if "origin" in word] == [
        "--allow-origin=https://a.example",
        "--allow-origin=*",
    ]


def test_the_time_to_drain_reaches_who_serves_and_the_supervisor() -> None:
    options = replace(OPTIONS, drain_s=30.0)
    planes = plan.data_planes(options, ADDRESSES, Path("d")).values()
    for part in (plan.gateway(options, ADDRESSES), *planes):
        assert "--drain-timeout=30.0" in part.command and part.drain_s == 30.0
    assert plan.control_plane(options, ADDRESSES, "unix:///socket").drain_s == 0


def test_predictions_are_those_that_were_asked_for() -> None:
    def flags(**changed: object) -> list[str]:
        options = replace(OPTIONS, **changed)  # type: ignore[arg-type]
        command = plan.control_plane(options, ADDRESSES, "unix:///socket").command
        return [word for word in command if word.startswith(("--prefetch", "--no-prefetch"))]

    assert flags() == ["--prefetch"]
    assert flags(prefetch=False) == ["--no-prefetch"]
    assert flags(prefetch_bytes_per_s=7) == ["--prefetch", "--prefetch-bytes-per-s=7"]


def test_prefixes_are_kept_apart_where_that_was_asked_for() -> None:
    for apart in (False, True):
        options = replace(OPTIONS, prefix_cache_per_tenant=apart)
        command = plan.control_plane(options, ADDRESSES, "unix:///socket").command
        assert ("--prefix-cache-per-tenant" in command) is apart


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"ttft_slo": 0.75}, "--ttft-slo=0.75"),
        ({"tool_call_format": "mistral"}, "--tool-call-format=mistral"),
        ({"ttft_slo": 0.0}, "--ttft-slo=0.0"),
        ({"pool_bytes": 5}, "--pool-bytes=5"),
        ({"num_threads": 3}, "--num-threads=3"),
        ({"tensor_parallel": 2}, "--tensor-parallel=2"),
        ({"speculative_tokens": 4}, "--speculative-tokens=4"),
    ],
)
def test_what_was_asked_for_reaches_every_data_plane(changed: dict[str, float], flag: str) -> None:
    def commands(options: plan.UpOptions) -> list[list[str]]:
        return [list(p.command) for p in plan.data_planes(options, ADDRESSES, Path("d")).values()]

    assert not any(flag in command for command in commands(OPTIONS))
    given = commands(replace(OPTIONS, **changed))  # type: ignore[arg-type]
    assert len(given) == 2 and all(flag in command for command in given)
