"""Where an adapter's versions are at the moment, and what loading them took."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import output, views
from controlplane.cli.data_plane import connected_to
from controlplane.cli.errors import BlockedError, DataPlaneSilentError
from controlplane.cli.fleet_token import find_token

if TYPE_CHECKING:
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


def inside(
    planes: Collection[fleet_pb.DataPlane],
    digests: dict[str, int],
    data_dir: Path | None,
    timeout: float,
) -> dict[str, list[dict[str, Any]] | None]:
    """What each data plane itself says of these digests: "loads" that have ended lately, "loading",
    and "waiting_pins"; "silent": those that say nothing, and why. All None without the fleet token,
    which is looked for as `find_token` does.
    """
    from chorale.errors import ChoraleError

    try:
        fleet_token = find_token(data_dir)
    except BlockedError:
        return {"loads": None, "loading": None, "waiting_pins": None, "silent": None}
    loads: list[dict[str, Any]] = []
    loading: list[dict[str, Any]] = []
    pins: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    for plane in planes:
        here = {"data_plane_id": plane.data_plane_id}
        try:
            with connected_to(plane.data_plane_id, plane.endpoint, timeout) as client:
                answer = client.adapter_loads(fleet_token, list(digests))
        except (DataPlaneSilentError, ChoraleError) as error:
            silent.append({**here, "reason": error.reason, "message": error.message})
            continue
        loads += [
            {"version": digests[each.digest], **here, **views.adapter_load(each)}
            for each in answer.loads
            if each.digest in digests
        ]
        loading += [
            {"version": digests[each.digest], **here, **views.adapter_loading(each)}
            for each in answer.loading
            if each.digest in digests
        ]
        pins += [
            {"version": digests[each.digest], **here, "waits_for": each.pin_waits_for}
            for each in answer.places
            if each.pin_waits_for and each.digest in digests
        ]
    return {"loads": loads, "loading": loading, "waiting_pins": pins, "silent": silent}


def print_whereabouts(
    where: list[dict[str, Any]],
    inside: dict[str, list[dict[str, Any]] | None],
    num_planes: int,
) -> None:
    print()
    output.print_table(
        "where it is",
        ("version", "data plane", "fastest tier"),
        [[str(each["version"]), each["data_plane_id"], each["tier"]] for each in where],
        right=("version",),
        empty=f"on none of {num_planes} data planes at the moment",
    )
    for each in inside["silent"] or ():
        print(output.sanitized(f"{each['reason']}: {each['message']}", one_line=True))
    for each in inside["waiting_pins"] or ():
        plane = output.sanitized(each["data_plane_id"], one_line=True)
        reason = output.sanitized(each["waits_for"], one_line=True)
        print(f"pin of version {each['version']} waits on {plane}: {reason}; it is tried again")
    _print_loading(inside["loading"] or [])
    ended = inside["loads"] or []
    _print_loads([each for each in ended if not each["reason"]])
    _print_failures([each for each in ended if each["reason"]])


def _print_loading(loading: list[dict[str, Any]]) -> None:
    if not loading:
        return
    print()
    output.print_table(
        "on its way to host memory",
        ("version", "data plane", "from", "state", "done", "of", "rate", "for"),
        [
            [
                *(str(each["version"]), each["data_plane_id"], each["from"], each["state"]),
                output.human_bytes(each["received_bytes"]),
                output.human_bytes(each["total_bytes"]) if each["total_bytes"] else "?",
                f"{output.human_bytes(int(each['bytes_per_s']))}/s",
                f"{each['waited_s']:.1f} s",
            ]
            for each in loading
        ],
        right=("version", "done", "of", "rate", "for"),
        empty="",
    )


def _print_loads(loads: list[dict[str, Any]]) -> None:
    if not loads:
        return
    parts = ("queue", "read", "parse", "build", "copy")
    print()
    output.print_table(
        "last loads into host memory, seconds; copy: into the pool",
        ("version", "data plane", "from", "size", *parts),
        [
            [
                *(str(each["version"]), each["data_plane_id"], each["origin"] or each["from"]),
                output.human_bytes(each["size_bytes"]),
                *(f"{each[f'{part}_s']:.3f}" for part in parts),
            ]
            for each in loads
        ],
        right=("version", "size", *parts),
        empty="",
    )


def _print_failures(failed: list[dict[str, Any]]) -> None:
    if not failed:
        return
    print()
    output.print_table(
        "last loads that failed",
        ("version", "data plane", "from", "seconds ago", "reason", "message"),
        [
            [
                *(str(each["version"]), each["data_plane_id"], each["origin"]),
                *(f"{each['age_s']:.0f}", each["reason"], each["message"]),
            ]
            for each in failed
        ],
        right=("version", "seconds ago"),
        empty="",
    )
