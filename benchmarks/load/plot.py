"""A report as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import PlotError


def check_plotting() -> None:
    """Raises: PlotError when matplotlib is not there; call it before measuring, not after."""
    if find_spec("matplotlib") is None:
        raise PlotError(
            "PLOT_UNAVAILABLE",
            "--plot needs matplotlib: pip install 'chorale[bench]', or leave --plot out; the JSON"
            " has all figures",
        )


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """One PNG: time to first token, gaps and latency as distributions, tokens/s over time.

    Raises: PlotError, OSError.
    """
    check_plotting()
    # The object interface: no window system, no state shared with the caller's own plots.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for number, phase in enumerate(report["phases"]):
        label = f"{phase['name']} {number + 1}" if len(report["phases"]) > 1 else phase["name"]
        done = [one for one in phase["requests"] if one["done_s"] is not None]
        _cumulative(axes[0, 0], [one["ttft_s"] for one in done if one["token_s"]], label)
        _cumulative(axes[0, 1], [one["done_s"] - one["due_s"] for one in done], label)
        gaps = [gap for one in done for gap in np.diff(one["token_s"]).tolist()]
        _cumulative(axes[1, 0], gaps, label)
        _rate(axes[1, 1], phase["requests"], label)
    for axis, name in (
        (axes[0, 0], "time to first token, ms"),
        (axes[0, 1], "latency, ms"),
        (axes[1, 0], "gap between chunks, ms"),
    ):
        axis.set(xlabel=name, ylabel="share of requests", ylim=(0, 1))
    axes[1, 0].set_ylabel("share of gaps")
    axes[1, 1].set(xlabel="seconds", ylabel="output tokens/s", ylim=(0, None))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    client = report["client"]
    figure.suptitle(
        f"{report['benchmark']}: {report['target']['base_model']}, {client['processor']}, commit"
        f" {client['commit']}"
    )
    figure.savefig(path, format="png", dpi=120)


def _cumulative(axis: Any, seconds: Sequence[float], label: str) -> None:
    if seconds:
        values = np.sort(np.array(seconds)) * 1e3
        axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=label)


def _rate(axis: Any, requests: Sequence[Mapping[str, Any]], label: str) -> None:
    times = np.array([at_s for one in requests for at_s in one["token_s"]])
    counts = np.array([count for one in requests for count in one["token_counts"]])
    if not times.size:
        return
    width_s = max(0.25, float(times.max()) / 60)
    totals, edges = np.histogram(
        times, bins=np.arange(0, times.max() + 2 * width_s, width_s), weights=counts
    )
    axis.plot(edges[:-1], totals / width_s, label=label)
