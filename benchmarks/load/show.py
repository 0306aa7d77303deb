"""A report for people: one table, and what makes its figures doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLUMNS = (
    "phase",
    "done",
    "failed",
    "tokens/s",
    "TTFT p50",
    "TTFT p99",
    "gap p50",
    "gap p99",
    "latency mean",
    "latency p99",
)


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Times in milliseconds."""
    target = report["target"]
    table = Table(
        title=Text(f"{report['benchmark']}: {target['base_model']} at {target['url']}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in report["phases"]:
        table.add_row(*_row(phase["name"], phase["summary"]))
    console.print(table)
    for phase in report["phases"]:
        _print_notes(console, phase)
    for name, value in report["ratios"].items():
        console.print(f"{name}: {value:.2f}", highlight=False)


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    def milliseconds(figure: str, which: str) -> str:
        found = figures[figure]
        return "-" if found is None else f"{found[which] * 1e3:.1f}"

    return [
        name,
        str(figures["num_completed"]),
        str(figures["num_failed"]),
        f"{figures['output_tokens_per_s']:.1f}",
        milliseconds("ttft_s", "p50"),
        milliseconds("ttft_s", "p99"),
        milliseconds("gap_s", "p50"),
        milliseconds("gap_s", "p99"),
        milliseconds("latency_s", "mean"),
        milliseconds("latency_s", "p99"),
    ]


def _print_notes(console: Console, phase: Mapping[str, Any]) -> None:
    figures = phase["summary"]
    notes = []
    if "attainment" in figures:
        notes.append(
            f"{figures['attainment']:.1%} had their first token within"
            f" {figures['ttft_objective_s']:g} s: goodput"
            f" {figures['goodput_requests_per_s']:.2f} requests/s,"
            f" {figures['goodput_tokens_per_s']:.1f} tokens/s"
        )
    for reason, count in figures["errors"].items():
        notes.append(f"{count} of {reason}: {_clean(figures['error_examples'][reason])}")
    if figures["num_short"]:
        notes.append(f"{figures['num_short']} answers have not the length that was asked for")
    if not phase["client_lag"]["kept_up"]:
        notes.append(f"THE CLIENT LAGGED: {'; '.join(phase['client_lag']['doubts'])}")
    for note in notes:
        console.print(Text(f"{phase['name']}: {note}"), soft_wrap=True)


def _clean(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
