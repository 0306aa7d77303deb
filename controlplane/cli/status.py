"""`chorale status`: what is served, by whom, and how busy they are."""

from __future__ import annotations

from typing import Any

import typer

from controlplane.cli import output, views
from controlplane.cli.connection import connected
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout


def status(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """Show the base models, the data planes, their load, and how many adapters are where."""
    with connected(address, timeout, as_json=as_json) as client:
        models = [views.base_model(one) for one in client.base_models()]
        planes = [views.data_plane(one) for one in client.data_planes()]
        num_adapters = sum(1 for _ in client.adapters.list())
    if as_json:
        view = {"base_models": models, "data_planes": planes, "num_adapters": num_adapters}
        output.print_json(view)
        return
    output.print_table(
        "base models",
        ("name", "layers", "vocabulary", "context"),
        [
            [m["name"], str(m["num_layers"]), str(m["vocab_size"]), str(m["max_context_tokens"])]
            for m in models
        ],
        right=("layers", "vocabulary", "context"),
        empty="no base models: no data plane has joined",
    )
    columns = ("id", "endpoint", "running", "waiting", "pages free", "adapters pool/host/disk")
    output.print_table(
        "data planes",
        (*columns, "tokens made"),
        [
            [
                p["data_plane_id"],
                p["endpoint"],
                f"{p['num_running']}/{p['max_running']}",
                str(p["num_waiting"]),
                f"{p['num_available_pages']}/{p['num_pages']}",
                f"{p['num_pool_adapters']}/{p['num_host_adapters']}/{p['num_disk_adapters']}",
                str(p["num_generated_tokens"]),
            ]
            for p in planes
        ],
        right=(*columns[2:], "tokens made"),
        empty="no live data planes",
    )
    _print_tiers(planes)
    _print_prefetches(planes)
    print(f"{num_adapters} adapters registered")


def _print_tiers(planes: list[dict[str, Any]]) -> None:
    columns = ("adapters", "bytes", "of", "hits", "misses", "evictions", "damaged")
    rows = [
        [
            *(plane["data_plane_id"], tier["tier"], str(tier["num_adapters"])),
            output.human_bytes(tier["size_bytes"]),
            output.human_bytes(tier["max_bytes"]),
            *(str(tier[f"num_{what}"]) for what in ("hits", "misses", "evictions", "damaged")),
        ]
        for plane in planes
        for tier in plane["tiers"]
    ]
    if rows:
        names = ("id", "tier", *columns)
        output.print_table("adapter tiers", names, rows, right=columns, empty="")


def _print_prefetches(planes: list[dict[str, Any]]) -> None:
    """Of data planes that have any to tell of. waiting: pins."""
    columns = (
        "prefetches",
        "hits",
        "late",
        "late s",
        "wasted",
        "failed",
        "refused",
        "waiting",
    )
    rows = [
        [
            plane["data_plane_id"],
            *(str(found[f"num_{what}"]) for what in ("asked", "hits", "late")),
            f"{found['late_s']:.2f}",
            output.human_bytes(found["wasted_bytes"]),
            *(str(found[f"num_{what}"]) for what in ("failed", "refused")),
            str(plane["num_waiting_pins"]),
        ]
        for plane in planes
        if any((found := plane["prefetches"]).values()) or plane["num_waiting_pins"]
    ]
    if rows:
        output.print_table("prefetches", ("id", *columns), rows, right=columns, empty="")


def install(app: typer.Typer) -> None:
    app.command("status")(status)
