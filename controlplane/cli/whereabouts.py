"""Where an adapter's versions are at the moment, and what loading them took."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import output
from controlplane.cli.errors import BlockedError
from controlplane.cli.fleet_token import find_token

if TYPE_CHECKING:
    from chorale.client import Client
    from chorale.v1 import fleet_pb2 as fleet_pb

_TIERS = ("pool", "host", "disk")


def residency(
    planes: Collection[fleet_pb.DataPlane], digests: dict[str, int]
) -> list[dict[str, Any]]:
    """digests: of the versions, to their numbers. Each in the fastest tier that has it, by data
    plane."""
    found: list[dict[str, Any]] = []
    for plane in planes:
        for tier in _TIERS:
            for digest in getattr(plane.residency, f"{tier}_digests"):
                if digest in digests:
                    entry = {"version": digests[digest], "tier": tier}
                    found.append({"data_plane_id": plane.data_plane_id, **entry})
    return sorted(found, key=lambda entry: (-entry["version"], entry["data_plane_id"]))


def loads(
    planes: Collection[fleet_pb.DataPlane], digests: dict[str, int], token: Path, timeout: float
) -> list[dict[str, Any]] | None:
    """The last loads of these digests, asked of each data plane itself; None without the fleet
    token, which the environment or the file `token` gives.

    Raises: ChoraleError.
    """
    from chorale.client import Client

    try:
        fleet_token = find_token(token)
    except BlockedError:
        return None
    found: list[dict[str, Any]] = []
    for plane in planes:
        with Client(plane.endpoint, timeout=timeout) as client:
            found += _loads_of(client, fleet_token, plane.data_plane_id, digests)
    return found


def print_whereabouts(
    where: list[dict[str, Any]], took: list[dict[str, Any]] | None, num_planes: int
) -> None:
    print()
    output.print_table(
        "where it is",
        ("version", "data plane", "fastest tier"),
        [[str(each["version"]), each["data_plane_id"], each["tier"]] for each in where],
        right=("version",),
        empty=f"on none of {num_planes} data planes at the moment",
    )
    if took:
        print()
        output.print_table(
            "last loads into host memory, seconds",
            ("version", "data plane", "from", "size", "read", "parse", "build"),
            [
                [
                    str(each["version"]),
                    each["data_plane_id"],
                    each["from"],
                    output.human_bytes(each["size_bytes"]),
                    *(f"{each[part]:.3f}" for part in ("read_s", "parse_s", "build_s")),
                ]
                for each in took
            ],
            right=("version", "size", "read", "parse", "build"),
            empty="",
        )


def _loads_of(
    client: Client, fleet_token: str, data_plane_id: str, digests: dict[str, int]
) -> list[dict[str, Any]]:
    return [
        {
            "version": digests[load.digest],
            "data_plane_id": data_plane_id,
            "from": load.tier,
            "size_bytes": load.size_bytes,
            "read_s": load.read_s,
            "parse_s": load.parse_s,
            "build_s": load.build_s,
        }
        for load in client.adapter_loads(fleet_token).loads
        if load.digest in digests
    ]
