"""`chorale demand`: what is asked for, what is predicted by it, and how often that came true."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from controlplane.cli import output, views
from controlplane.cli.connection import connected
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout


def demand(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most adapters to show.")] = 20,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show which adapters are asked for, what tends to follow them, and the predictions."""
    with connected(address, timeout, as_json=as_json) as client:
        view = views.demand(client.demand(limit))
    if as_json:
        output.print_json(view)
        return
    _print_adapters(view["adapters"], counted=view["predicting"])
    _print_predictions(view["predictions"])
    _print_scores(view["scores"])
    if not view["predicting"]:
        print("no control plane predicts now")


def _print_adapters(adapters: list[dict[str, Any]], *, counted: bool) -> None:
    half_lives = (
        [f"in {_span(each['half_life_s'])}" for each in adapters[0]["rates"]] if adapters else []
    )
    rows = [
        [
            each["name"],
            *(f"{rate['requests_per_s'] * 60:.2f}" for rate in each["rates"]),
            ", ".join(
                f"{after['name'] or after['digest'][:12]} {after['share']:.0%}"
                for after in each["followers"][:3]
            ),
        ]
        for each in adapters
    ]
    output.print_table(
        "requests per minute, by half-life",
        ("adapter", *half_lives, "then"),
        rows,
        right=half_lives,
        # Without predictions nobody counts, whatever is asked for.
        empty="no adapter was asked for lately" if counted else "no demand is counted",
    )


def _print_predictions(predictions: list[dict[str, Any]]) -> None:
    if not predictions:
        return
    columns = ("size", "s ago", "s left")
    rows = [
        [
            *(each[name] for name in ("name", "data_plane_id", "tier", "kind")),
            output.human_bytes(each["size_bytes"]),
            *(f"{each[name]:.0f}" for name in ("age_s", "left_s")),
            "yes" if each["hit"] else "",
        ]
        for each in predictions
    ]
    names = ("adapter", "data plane", "tier", "why", *columns, "came true")
    output.print_table("predictions", names, rows, right=columns, empty="")


def _print_scores(scores: list[dict[str, Any]]) -> None:
    columns = ("made", "hits", "late", "misses", "bytes", "share of hits")
    rows = [
        [
            each["kind"],
            *(str(each[f"num_{name}"]) for name in ("made", "hits", "late", "misses")),
            output.human_bytes(each["asked_bytes"]),
            f"{each['precision']:.0%}"
            if each["num_hits"] + each["num_late"] + each["num_misses"]
            else "",
        ]
        for each in scores
    ]
    output.print_table("score", ("why", *columns), rows, right=columns, empty="")


def _span(seconds: float) -> str:
    """300 -> '5 min'."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def install(app: typer.Typer) -> None:
    app.command("demand")(demand)
