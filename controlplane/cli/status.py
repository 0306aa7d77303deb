"""`chorale status`: what is served, by whom, and how busy they are."""

from __future__ import annotations

import typer

from controlplane.cli import output, views
from controlplane.cli.failures import reported
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout


def status(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """Show the base models, the data planes, their load, and how many adapters are where."""
    with reported(as_json=as_json, address=address):
        from chorale.client import Client

        with Client(address, timeout=timeout) as client:
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
    print(f"{num_adapters} adapters registered")


def install(app: typer.Typer) -> None:
    app.command("status")(status)
