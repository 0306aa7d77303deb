from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chorale.errors import UnauthenticatedError
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admin_pb2 as admin_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from controlplane.cli.fleet_token import write_token
from controlplane.cli.pool_map import COLUMNS, MAX_ROWS, pool_map
from controlplane.cli.views import pool as view_of
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway

DIGEST = "ab" * 32
TOKEN = {"CHORALE_FLEET_TOKEN": "secret"}


def pool_of(*runs: tuple[int, str, int], **fields: Any) -> admin_pb.GetPoolResponse:
    answer = admin_pb.GetPoolResponse(data_plane_id="dp-1", page_bytes=1024, **fields)
    for kind, owner_id, num_pages in runs:
        answer.runs.add(
            owner_kind=kind,  # type: ignore[arg-type]
            owner_id=owner_id,
            first_page=answer.num_pages,
            num_pages=num_pages,
        )
        answer.num_pages += num_pages
    return answer


POOL = pool_of((3, "1", 2), (1, "", 3), (4, "k", 1), (2, DIGEST, 4), (9, "new", 1))


@pytest.fixture
def fleet(gateway: ScriptedGateway) -> ScriptedGateway:
    version = registry_pb.AdapterVersion(version=2, digest=DIGEST)
    gateway.answers |= {
        "ListDataPlanes": fleet_pb.ListDataPlanesResponse(
            data_planes=[
                fleet_pb.DataPlane(data_plane_id=name, endpoint=gateway.address)
                for name in ("dp-1", "dp-2")
            ]
        ),
        "ListAdapters": registry_pb.ListAdaptersResponse(
            adapters=[registry_pb.Adapter(name="pirate", versions=[version])]
        ),
        "GetPool": POOL,
    }
    return gateway


def test_draws_the_map(chorale: Chorale, fleet: ScriptedGateway) -> None:
    shown = chorale("pool", "--data-plane", "dp-1", env=TOKEN)
    assert shown.exit_code == 0, shown.stderr
    assert "dp-1: 11 pages of 1.0 KiB" in shown.stdout
    assert "##...+AAAA?\n" in shown.stdout
    assert "pirate@2" in shown.stdout and DIGEST[:12] in shown.stdout
    assert "every page has exactly one owner" in shown.stdout
    assert fleet.metadata[-1]["authorization"] == "Bearer secret"
    assert all("authorization" not in metadata for metadata in fleet.metadata[:-1]), (
        "the gateway has no need of the token"
    )


def test_json_of_all_data_planes(chorale: Chorale, fleet: ScriptedGateway) -> None:
    shown = chorale("pool", "--json", env=TOKEN)
    pools = json.loads(shown.stdout)["pools"]
    assert len(pools) == 2
    assert pools[0]["runs"][3] == {
        "owner_kind": "adapter",
        "owner_id": DIGEST,
        "first_page": 6,
        "num_pages": 4,
    }
    assert pools[0]["problem"] == "" and pools[0]["num_pages"] == 11


def test_a_broken_pool_is_told(chorale: Chorale, fleet: ScriptedGateway) -> None:
    fleet.answers["GetPool"] = pool_of((1, "", 1), problem="page 0\x1b[2J leaked")
    shown = chorale("pool", env=TOKEN)
    assert "integrity: BROKEN: page 0[2J leaked" in shown.stdout


def test_the_token_comes_from_the_data_dir_of_up(
    chorale: Chorale, fleet: ScriptedGateway, tmp_path: Path
) -> None:
    write_token(tmp_path / "fleet-token", "from-file")
    write_token(tmp_path / "fleet-token", "from-file-2")
    assert (tmp_path / "fleet-token").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["fleet-token"]
    assert chorale("pool", "--data-dir", str(tmp_path)).exit_code == 0
    assert fleet.metadata[-1]["authorization"] == "Bearer from-file-2"
    assert chorale("pool", "--data-dir", str(tmp_path), env=TOKEN).exit_code == 0
    assert fleet.metadata[-1]["authorization"] == "Bearer secret"


def test_the_token_comes_from_the_file_that_is_named(
    chorale: Chorale, fleet: ScriptedGateway, tmp_path: Path
) -> None:
    write_token(tmp_path / "fleet-token", "of-up")
    write_token(tmp_path / "mounted", "of-docker")
    named = {"CHORALE_FLEET_TOKEN_FILE": str(tmp_path / "mounted")}
    assert chorale("pool", "--data-dir", str(tmp_path), env=named).exit_code == 0
    assert fleet.metadata[-1]["authorization"] == "Bearer of-docker"
    assert chorale("pool", env={**named, **TOKEN}).exit_code == 0
    assert fleet.metadata[-1]["authorization"] == "Bearer secret"
    wrong = {"CHORALE_FLEET_TOKEN_FILE": str(tmp_path / "none")}
    refused = chorale("pool", "--data-dir", str(tmp_path), env=wrong)
    assert refused.exit_code == 4 and f"{tmp_path}/none" in refused.stderr


def test_refusals(chorale: Chorale, fleet: ScriptedGateway, tmp_path: Path) -> None:
    none = chorale("pool", "--data-dir", str(tmp_path), "--json")
    assert none.exit_code == 4
    assert json.loads(none.stdout)["error"]["reason"] == "FLEET_TOKEN_MISSING"
    unknown = chorale("pool", "--data-plane", "dp-9", env=TOKEN)
    assert unknown.exit_code == 3 and "dp-1, dp-2" in unknown.stderr
    fleet.answers["GetPool"] = UnauthenticatedError("FLEET_TOKEN_WRONG", "no")
    assert chorale("pool", env=TOKEN).exit_code == 4


def test_an_empty_fleet(chorale: Chorale, fleet: ScriptedGateway) -> None:
    fleet.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse()
    shown = chorale("pool", env=TOKEN)
    assert shown.exit_code == 0 and shown.stdout == "no live data planes\n"


def test_a_large_pool_stays_on_a_screen() -> None:
    runs = [(2, f"{i:064x}", 1000) for i in range(60)]
    shown = pool_map(view_of(pool_of(*runs, (1, "", 5001))))
    assert len(shown.rows) <= MAX_ROWS and all(len(row) <= COLUMNS for row in shown.rows)
    assert shown.pages_per_cell == -(-65_001 // (COLUMNS * MAX_ROWS))
    assert sum(map(len, shown.rows)) == -(-65_001 // shown.pages_per_cell)
    assert shown.rows[-1].endswith("." * 64) or set(shown.rows[-1]) == {"."}
    assert len(shown.holdings) == 60 and shown.holdings[26].letter == shown.holdings[0].letter
    assert shown.pages["adapter"] == 60_000 and shown.owners["adapter"] == 60


def test_a_cell_shows_who_has_most_of_it() -> None:
    pages = COLUMNS * MAX_ROWS * 3
    shown = pool_map(view_of(pool_of((3, "1", 1), (2, DIGEST, 2), (1, "", pages - 3))))
    assert shown.pages_per_cell == 3
    assert "".join(shown.rows) == "A" + "." * (COLUMNS * MAX_ROWS - 1)


def test_a_data_plane_that_does_not_answer_is_named(
    chorale: Chorale, fleet: ScriptedGateway
) -> None:
    plane = fleet_pb.DataPlane(data_plane_id="gone", endpoint="127.0.0.1:1")
    fleet.answers["ListDataPlanes"] = fleet_pb.ListDataPlanesResponse(data_planes=[plane])
    result = chorale("pool", env=TOKEN)
    assert result.exit_code == 5
    assert "DATA_PLANE_SILENT: data plane gone does not answer at 127.0.0.1:1" in result.stderr
