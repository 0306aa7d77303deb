"""What all `chorale bench` commands do with the workload that they have made."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from controlplane.cli import connection
from controlplane.cli.bench_options import Shared
from controlplane.cli.errors import NoSuchFileError, TargetUnusableError, UsageError
from controlplane.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.load.workload import Workload

_MAX_ADAPTERS = 100_000


def measure(make: Callable[[list[str]], Workload], shared: Shared) -> None:
    """Runs the workload that `make` gives for the adapters' names; prints and writes the report.

    Raises: CliError; typer.Exit when not one request was completed.
    """
    try:
        from rich.console import Console

        from benchmarks.errors import BenchError, TargetError
        from benchmarks.load import plot, run, show
        from benchmarks.load.live import live_view
    except ModuleNotFoundError as error:
        raise UsageError(
            "BENCH_UNAVAILABLE",
            f"chorale bench needs {error.name}: pip install 'chorale[bench]'",
            metadata={"module": str(error.name)},
        ) from error

    names, sources = adapters_in(shared.adapters)
    _check_writable(shared)
    try:
        if shared.plot_path is not None:
            plot.check_plotting()
        workload = make(names)
        if shared.warm_up:
            workload = run.warmed_up(workload)
        options = run.RunOptions(
            url=shared.target,
            model=shared.model,
            sources=sources if shared.target.startswith(("grpc:", "grpcs:")) else {},
            seed=shared.seed,
            vocab_size=shared.vocab_size,
            ttft_objective_s=shared.ttft_slo,
            timeout_s=shared.timeout,
            extensions=shared.extensions,
            api_key=connection.api_key(),
            tls_ca_file=connection.tls_ca_file(),
        )
        with live_view(Console(stderr=True), f"bench {workload.name}") as show_phase:
            report = asyncio.run(run.run(workload, options, show_phase))
        if shared.json_path is not None:
            shared.json_path.write_text(json.dumps(report, indent=1) + "\n")
        if shared.plot_path is not None:
            plot.write_plot(report, shared.plot_path)
    except TargetError as error:
        raise TargetUnusableError(error.reason, error.message, metadata=error.metadata) from error
    except BenchError as error:
        raise UsageError(error.reason, error.message, metadata=error.metadata) from error
    # Piped, a table is as wide as it needs.
    show.print_report(Console(width=None if sys.stdout.isatty() else 200), report)
    if not any(phase["summary"]["num_completed"] for phase in report["phases"]):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def adapters_in(value: str) -> tuple[list[str], dict[str, str]]:
    """The adapters' names, and where a directory was given, name -> PEFT directory in it.

    Raises: UsageError, NoSuchFileError.
    """
    if not value:
        return [], {}
    path = Path(value)
    if path.is_dir():
        found = sorted(one.parent for one in path.glob("*/adapter_config.json"))
        if not found:
            raise NoSuchFileError(
                "NO_ADAPTERS",
                f"--adapters {value[:200]}: no directory in it has an adapter_config.json",
                metadata={"adapters": value[:200]},
            )
        sources = {one.name: str(one.absolute()) for one in found}
        return list(sources), sources
    if "/" in value:
        raise NoSuchFileError(
            "NO_ADAPTERS",
            f"--adapters {value[:200]}: no such directory; give one, or names with commas",
            metadata={"adapters": value[:200]},
        )
    names = value.split(",")
    if not all(names) or len(set(names)) < len(names) or len(names) > _MAX_ADAPTERS:
        raise UsageError(
            "ADAPTERS_INVALID",
            f"--adapters {value[:200]!r}: names with commas between, each once",
            metadata={"adapters": value[:200]},
        )
    return names, {}


def length_range(option: str, value: str) -> tuple[int, int]:
    """LOW:HIGH. Raises: UsageError."""
    low, colon, high = value.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and len(value) < 20):
        raise UsageError(
            "RANGE_INVALID",
            f"{option} {value[:200]!r}: give LOW:HIGH, two numbers; HIGH itself is not drawn",
            metadata={"option": option, "value": value[:200]},
        )
    return int(low), int(high)


def _check_writable(shared: Shared) -> None:
    """Before measuring: minutes of work are not to be lost to a typing error."""
    options: list[tuple[str, Any]] = [("--json", shared.json_path), ("--plot", shared.plot_path)]
    for option, path in options:
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise NoSuchFileError(
                "OUTPUT_INVALID",
                f"{option} {path}: give a file in a directory that exists",
                metadata={"option": option, "path": str(path)},
            )
