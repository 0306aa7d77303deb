"""`chorale top`: what the data planes do, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.connection import connected
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout

if TYPE_CHECKING:
    from chorale.v1 import fleet_pb2 as fleet_pb
    from controlplane.cli.rates import Rate

_COLUMNS = (
    *("tokens/s", "running", "waiting", "pages used", "adapters", "loading"),
    *("pool hits", "evictions/s"),
)


def top(
    address: Address = DEFAULT_ADDRESS,
    every: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Seconds between two looks.")
    ] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="Looks, then end; 0: until Ctrl-C.")] = 0,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show again and again what each data plane does. With --json a line for each look."""
    with (
        connected(address, timeout, as_json=as_json) as client,
        _screen(as_json=as_json) as show,
    ):
        from controlplane.cli.rates import Rates

        rates = Rates()
        looks = 0
        while True:
            planes = sorted(client.data_planes(), key=lambda each: each.data_plane_id)
            show(_rows(planes, rates.update(planes)))
            looks += 1
            if looks == count:
                return
            time.sleep(every)


def _rows(planes: Sequence[fleet_pb.DataPlane], rates: Mapping[str, Rate]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for plane in planes:
        load, rate = plane.load, rates.get(plane.data_plane_id)
        rows.append(
            {
                "data_plane_id": plane.data_plane_id,
                "tokens_per_s": rate.tokens_per_s if rate else None,
                "num_running": load.num_running,
                "max_running": load.max_running,
                "num_waiting": load.num_waiting,
                "num_used_pages": load.num_pages - load.num_available_pages,
                "num_pages": load.num_pages,
                "num_pool_adapters": len(plane.residency.pool_digests),
                "num_loading": load.num_loading,
                "pool_hit_share": rate.hit_share if rate else None,
                "evictions_per_s": rate.evictions_per_s if rate else None,
            }
        )
    return rows


@contextmanager
def _screen(*, as_json: bool) -> Generator[Callable[[list[dict[str, Any]]], None]]:
    """Where looks are shown: in place on a terminal, one after the other elsewhere."""
    if as_json:
        import json

        yield lambda rows: print(json.dumps({"data_planes": rows}), flush=True)
    elif not sys.stdout.isatty():
        yield lambda rows: output.print_table(
            "data planes",
            ("id", *_COLUMNS),
            [_cells(row) for row in rows],
            right=_COLUMNS,
            empty="no live data planes",
        )
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            yield lambda rows: live.update(
                output.table(
                    "data planes", ("id", *_COLUMNS), [_cells(row) for row in rows], right=_COLUMNS
                ),
                refresh=True,
            )


def _cells(row: Mapping[str, Any]) -> list[str]:
    share = row["num_used_pages"] / max(row["num_pages"], 1)
    return [
        row["data_plane_id"],
        _number(row["tokens_per_s"]),
        f"{row['num_running']}/{row['max_running']}",
        str(row["num_waiting"]),
        f"{row['num_used_pages']}/{row['num_pages']} {share:.0%}",
        str(row["num_pool_adapters"]),
        str(row["num_loading"]),
        "-" if row["pool_hit_share"] is None else f"{row['pool_hit_share']:.0%}",
        _number(row["evictions_per_s"]),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def install(app: typer.Typer) -> None:
    app.command("top")(top)
