"""What compose.yaml starts, as plain processes: two data planes, by its own health checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
import redis
import trustme

import chorale
from tests.e2e.conftest import ADAPTERS, BASE, expected
from tests.helpers.compose import Deployment
from tests.helpers.fleet_certificates import write_files

pytestmark = [pytest.mark.timeout(240)]


def test_a_fresh_deployment_answers_and_stops_in_order(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    shutil.copytree(ADAPTERS / "french", adapters / "french")
    variables = {
        "CHORALE_ADAPTERS_DIR": str(adapters),
        "CHORALE_DATA_PLANES": "2",
        "CHORALE_NUM_THREADS": "1",
        "CHORALE_POOL_BYTES": str(64 << 20),
    }
    with Deployment(tmp_path, variables) as deployed:
        grpc_address = deployed.address("gateway", 50051)
        operator = deployed.processes["control-plane"][0]

        for arguments in (
            ("french", "/adapters/french"),
            ("roman", "/opt/chorale/demo/adapters/roman"),
            ("german", str(ADAPTERS / "german"), "--upload"),
        ):
            added = operator.run("chorale", "adapters", "add", *arguments)
            assert added.returncode == 0, added.stderr
        with chorale.Client(grpc_address) as client:
            assert len({plane.data_plane_id for plane in client.data_planes()}) == 2
            for name in (BASE, "french", "roman", "german"):
                model = "" if name == BASE else name
                answer = client.complete("407 =", model=model, max_tokens=48, timeout=60)
                assert answer.text.strip() == expected(name, 407)
        http_url = f"http://{deployed.address('gateway', 8000)}"
        with httpx.Client(base_url=http_url, timeout=60) as http:
            body = {"model": "french", "prompt": "407 =", "max_tokens": 48, "temperature": 0}
            answered = http.post("/v1/completions", json=body).raise_for_status().json()
            assert answered["choices"][0]["text"].strip() == expected("french", 407)

        # The operator's shell has the fleet token; Redis is closed to those without a password.
        pool = operator.run("chorale", "pool", "--json")
        assert pool.returncode == 0 and json.loads(pool.stdout), pool.stderr
        host, _, port = deployed.address("redis", 6379).partition(":")
        with pytest.raises(redis.AuthenticationError), redis.Redis(host, int(port)) as stranger:
            stranger.ping()

        secrets = tmp_path / "volumes" / "secrets"
        before = {path.name: path.read_text() for path in secrets.iterdir()}
        assert set(before) == {"fleet-token", "redis-password", "redis.conf"}
        assert all(path.stat().st_mode & 0o777 == 0o640 for path in secrets.iterdir())
        deployed.processes["secrets"][0].start()
        deployed.processes["secrets"][0].wait_until("service_completed_successfully")
        assert {path.name: path.read_text() for path in secrets.iterdir()} == before

        statuses = deployed.stop()
        assert list(statuses) == ["data-plane", "gateway", "control-plane", "redis"]
        assert [status for each in statuses.values() for status in each] == [0] * 5


def test_a_deployment_with_keys_and_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    directories = {name: tmp_path / name for name in ("fleet", "tls", "ca", "keys")}
    for directory in directories.values():
        directory.mkdir()
    write_files(directories["fleet"], trustme.CA())
    certificate = authority.issue_cert("llm.example")
    certificate.cert_chain_pems[0].write_to_path(str(directories["tls"] / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directories["tls"] / "key.pem"))
    authority.cert_pem.write_to_path(str(directories["ca"] / "ca.pem"))
    made = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "keys", "new", "app", "--tenant=shop",
         f"--file={directories['keys'] / 'keys.json'}", "--scope=generate"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    variables = {
        "CHORALE_API_KEYS_DIR": str(directories["keys"]),
        "CHORALE_FLEET_TLS_DIR": str(directories["fleet"]),
        "CHORALE_NUM_THREADS": "1",
        "CHORALE_POOL_BYTES": str(64 << 20),
        "CHORALE_TLS_CA_DIR": str(directories["ca"]),
        "CHORALE_TLS_DIR": str(directories["tls"]),
        "CHORALE_TLS_SERVER_NAME": "llm.example",
    }
    with Deployment(tmp_path, variables) as deployed:
        operator = deployed.processes["control-plane"][0]
        listed = operator.run("chorale", "adapters", "list")
        assert listed.returncode != 0 and "API_KEY_MISSING" in listed.stderr, "over TLS, and no key"
        with chorale.Client(
            f"grpcs://{deployed.address('gateway', 50051)}",
            api_key=made.stdout.strip(),
            credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()),
            server_name="llm.example",
        ) as client:
            answer = client.complete("407 =", max_tokens=48, timeout=60)
            assert answer.text.strip() == expected(BASE, 407)
        plain = operator.run("chorale", "health", "--address=control-plane:50050", "--timeout=5")
        assert plain.returncode != 0, "the planes speak TLS alone"
