"""Twice the adapters that the pool holds: what it costs, and whether anybody waits too long.

    python -m benchmarks.oversubscribed [--shape small] [--fits 8] [--factor 2] [--out DIR]

Starts `chorale up` with a pool of exactly as many pages as --fits adapters and the KV of all
streams take, and runs `chorale bench oversubscribed`'s workload on it over gRPC. The fairness bound
that it checks is explained in docs/architecture.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.fixtures import write_fixtures
from benchmarks.load import generators, run, show
from benchmarks.load.live import live_view
from benchmarks.models import SHAPES, Shape
from benchmarks.servers import chorale_server
from dataplane.engine_options import EngineOptions

PAGE_TOKENS = 16  # of a data plane
MAX_TTFT_RATIO = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--fits", type=int, default=8, help="adapters that the pool holds")
    parser.add_argument("--factor", type=int, default=2, help="times as many are used")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32, help="of each phase")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if arguments.factor < 2 or min(arguments.rank, arguments.fits) < 1:
        parser.error("--factor must be at least 2, --rank and --fits at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = measure(arguments, Path(folder))
    show.print_report(Console(), report)
    ratio = report["ratios"].get("ttft_s_p50_over_to_fits")
    if ratio is not None:
        verdict = "holds" if ratio <= MAX_TTFT_RATIO else "DOES NOT HOLD"
        print(f"median TTFT at most {MAX_TTFT_RATIO:g} times: {verdict}")
    for line in report["fairness"]:
        verdict = "holds" if line["held"] else "DOES NOT HOLD"
        print(
            f"{line['phase']}: longest wait of an adapter at hand {line['longest_wait_s']:.3f} s,"
            f" bound {line['bound_s']:.3f} s: {verdict}"
        )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"oversubscribed-{arguments.shape}.json"
        # What they sum up to is in the phases; each request of its own would be half a megabyte.
        phases = [{**phase, "requests": len(phase["requests"])} for phase in report["phases"]]
        path.write_text(json.dumps({**report, "phases": phases}, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report of `chorale bench oversubscribed`, with the pool. Raises: BenchError."""
    shape = SHAPES[arguments.shape]
    context = arguments.input_tokens + arguments.output_tokens
    num_pages = pool_pages(
        shape,
        rank=arguments.rank,
        num_adapters=arguments.fits,
        num_streams=arguments.concurrency,
        context=context,
    )
    fixtures = write_fixtures(
        folder, shape, num_adapters=arguments.fits * arguments.factor, ranks=(arguments.rank,)
    )
    sources = {path.name: str(path) for path in fixtures.adapters}
    workload = generators.oversubscribed(
        list(sources),
        num_fitting=arguments.fits,
        concurrency=arguments.concurrency,
        num_requests=arguments.requests,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        rounds=arguments.rounds,
    )
    options = (
        "--dtype=bfloat16",
        f"--pool-bytes={num_pages * page_bytes(shape)}",
        f"--max-context-tokens={context}",
    )
    with (
        chorale_server(fixtures, folder, *options) as server,
        live_view(Console(stderr=True), "bench oversubscribed") as show_phase,
    ):
        target = run.RunOptions(url=f"grpc://{server.grpc_address}", sources=sources)
        report = asyncio.run(run.run(run.warmed_up(workload), target, show_phase))
    report["workload"] |= {"shape": arguments.shape, "rank": arguments.rank}
    report["workload"]["pool_pages"] = num_pages
    report["fairness"] = [
        fairness(phase, len(names), arguments.concurrency)
        for phase in report["phases"]
        if (names := {each["adapter"] for each in phase["requests"]})
    ]
    return report


def requests_ahead(num_adapters: int, concurrency: int) -> int:
    """Requests of a closed loop that may be started before one whose adapter is at hand, but for
    those that clustering prefers: what runs or waits already, and of each other adapter as many
    as its own adapter had at once, since by so much its own may have been served more."""
    lead = -(-concurrency // num_adapters)
    return concurrency - 1 + (num_adapters - 1) * lead


def fairness(phase: dict[str, Any], num_adapters: int, concurrency: int) -> dict[str, Any]:
    """The longest wait of a phase, less the wait for the adapter's load, and its bound: the time
    in which clustering may prefer others, and what those ahead take at the phase's own rate."""
    waits = [
        each["queue_s"] - each["adapter_load_s"]
        for each in phase["requests"]
        if each["queue_s"] is not None
    ]
    rate = phase["summary"]["requests_per_s"]
    ahead = requests_ahead(num_adapters, concurrency)
    bound_s = EngineOptions(model_dir="", model_name="").max_cluster_delay_s
    bound_s += ahead / rate if rate else 0.0
    longest_s = max(waits, default=0.0)
    return {
        "phase": phase["name"],
        "requests_ahead": ahead,
        "bound_s": bound_s,
        "longest_wait_s": longest_s,
        "held": longest_s <= bound_s,
    }


def pool_pages(
    shape: Shape, *, rank: int, num_adapters: int, num_streams: int, context: int
) -> int:
    """Pages of so many all-linear adapters and of the KV of so many streams."""
    layer_elems = shape.adapter_bytes(rank) // 2 // shape.num_layers
    page_elems = page_bytes(shape) // 2 // shape.num_layers
    adapter_pages = -(-layer_elems // page_elems)
    return num_adapters * adapter_pages + num_streams * -(-context // PAGE_TOKENS)


def page_bytes(shape: Shape) -> int:
    """Of one page over all layers, bfloat16."""
    return 2 * 2 * PAGE_TOKENS * shape.num_kv_heads * shape.head_dim * shape.num_layers


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
