"""An operator's word, from the command line to the pool of a real data plane and back."""

from __future__ import annotations

import json

import chorale
from chorale.v1 import fleet_pb2 as pb
from examples.demo.voices import PROMPT
from tests.e2e.conftest import expected
from tests.helpers import up as helpers
from tests.helpers.up import ChoraleUp
from tests.helpers.waiting import until

NAME = "roman"


def told(up: ChoraleUp, *arguments: str) -> None:
    answer = helpers.chorale(
        "adapters",
        *arguments,
        "--json",
        f"--address={up.grpc_address}",
        f"--data-dir={up.data_dir}",
    )
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["data_planes"]) == 1


def check_metrics(up: ChoraleUp) -> None:
    def is_seen() -> bool:
        seen, answered = up.metrics(), {"model": NAME, "version": "1", "kind": "completion"}
        plane = {"data_plane": "data-plane-0"}
        return (
            seen("chorale_gateway_model_tokens_total", answered) > 0
            and seen("chorale_fleet_up") == 1
            and seen("chorale_registry_adapters") > 1
            and seen("chorale_fleet_prefetches_total", plane, what="hit") >= 1
            and seen("chorale_fleet_tier_bytes", plane, tier="pool") > 0
            and seen("chorale_fleet_tier_hits_total", plane, tier="pool") > 0
            and seen("chorale_fleet_tier_adapters", plane, tier="disk") > 0
            and any(  # disk has it when another test came first
                seen("chorale_fleet_adapter_loads_total", plane, origin=origin, outcome="OK") > 0
                for origin in ("file", "disk")
            )
        )

    until(is_seen)


def check_shown(up: ChoraleUp) -> None:
    where = (f"--address={up.grpc_address}", f"--data-dir={up.data_dir}")
    shown = json.loads(helpers.chorale("adapters", "show", NAME, "--json", *where).stdout)
    assert shown["residency"][0]["tier"] == "pool"
    assert shown["loading"] == shown["waiting_pins"] == []
    last = shown["loads"][-1]
    assert last["origin"] in ("file", "disk") and last["reason"] == ""
    assert min(last[f"{part}_s"] for part in ("read", "parse", "build", "copy")) > 0


def test_prefetch_use_and_unload(up: ChoraleUp, client: chorale.Client) -> None:
    (version,) = client.adapters.get(NAME).adapter.versions

    def load() -> pb.DataPlane:
        (plane,) = client.data_planes()
        return plane

    def is_in(*tiers: str) -> bool:
        residency = load().residency
        return any(version.digest in getattr(residency, f"{tier}_digests") for tier in tiers)

    told(up, "unload", NAME, "--within", "0")
    until(lambda: not is_in("pool", "host"))
    hits = load().load.prefetches.num_hits
    told(up, "prefetch", NAME, "--tier", "pool", "--wait", "--wait-timeout", "60")
    until(lambda: is_in("pool"))
    answer = client.complete(PROMPT.format(n=7), model=NAME, max_tokens=40)
    assert answer.text.strip() == expected(NAME, 7)
    until(lambda: load().load.prefetches.num_hits == hits + 1)
    check_metrics(up)
    check_shown(up)
    told(up, "pin", NAME, "--tier", "pool")
    told(up, "unpin", NAME)
    told(up, "unload", NAME)
    until(lambda: not is_in("pool", "host"))
    until(lambda: is_in("disk"))
