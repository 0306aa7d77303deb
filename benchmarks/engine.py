"""The engine alone, no network: decode throughput of mixed adapters as a share of base-only.

    python -m benchmarks.engine [--shape small] [--concurrency 8] [--device cpu] [--out DIR]

Prints a table, and with --out writes it as JSON with device and commit. Figures are ratios of runs
that take turns in one process, so that a machine whose speed drifts does not favour any.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.models import SHAPES, Shape, write_adapter, write_model
from dataplane.channel import Adapter, EngineOptions, Sampling, Submit
from dataplane.engine.engine import Engine
from dataplane.engine.setup import EngineParts, build_engine
from storage.adapter.manifest import digest_of

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chorale-bench-") as folder:
        report = run(arguments, Path(folder))
    show(report)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = f"engine-{arguments.shape}-{report['device_type']}.json"
        (arguments.out / name).write_text(json.dumps(report, indent=2) + "\n")


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    shape, concurrency = SHAPES[arguments.shape], arguments.concurrency
    write_model(folder / "model", shape)
    adapters = _write_adapters(folder, shape, concurrency, arguments.rank)
    parts = _engine(arguments, folder)
    try:
        cases = {
            "base only": [None] * concurrency,
            "1 adapter": [adapters[0]] * concurrency,
            f"{concurrency} adapters": adapters,
        }
        for adapter_of_request in cases.values():  # loads adapters, warms up
            _closed_loop(parts.engine, arguments, adapter_of_request)
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(arguments.rounds):
            for name, adapter_of_request in cases.items():
                rates[name].append(_closed_loop(parts.engine, arguments, adapter_of_request))
    finally:
        parts.loader.stop()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "benchmark": "engine",
        "shape": arguments.shape,
        "rank": arguments.rank,
        "concurrency": concurrency,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "device_type": parts.ready.device,
        "device": _device_name(parts.ready.device),
        "dtype": parts.ready.dtype,
        "torch": torch.__version__,
        "commit": _commit(),
        "output_tokens_per_s": rates,
        "share_of_base_only": {
            name: median / medians["base only"] for name, median in medians.items()
        },
    }


def show(report: dict[str, object]) -> None:
    rates, shares = report["output_tokens_per_s"], report["share_of_base_only"]
    assert isinstance(rates, dict) and isinstance(shares, dict)
    print(
        f"{report['shape']}, rank {report['rank']}, {report['concurrency']} streams,"
        f" {report['dtype']} on {report['device']}, commit {report['commit']}"
    )
    print(f"{'case':<14}{'tokens/s':>12}{'of base only':>14}")
    for name, values in rates.items():
        print(f"{name:<14}{statistics.median(values):>12.1f}{shares[name]:>14.2f}")


def _write_adapters(folder: Path, shape: Shape, count: int, rank: int) -> list[Adapter]:
    adapters: list[Adapter] = []
    for index in range(count):
        directory = folder / f"adapter{index}"
        write_adapter(directory, shape, rank=rank, seed=index)
        digest = digest_of(
            (directory / "adapter_config.json").read_bytes(),
            (directory / "adapter_model.safetensors").read_bytes(),
        )
        adapters.append(Adapter(digest, str(directory), directory.name))
    return adapters


def _engine(arguments: argparse.Namespace, folder: Path) -> EngineParts:
    parts = build_engine(
        EngineOptions(
            model_dir=str(folder / "model"),
            model_name="bench",
            device=arguments.device,
            dtype=arguments.dtype,
            max_running=arguments.concurrency,
            max_batch_tokens=max(512, arguments.concurrency),
            adapter_roots=(str(folder),),
            disk_cache_dir=str(folder / "disk"),
        ),
        on_loaded=lambda: None,
    )
    parts.loader.start()
    return parts


def _closed_loop(
    engine: Engine, arguments: argparse.Namespace, adapters: list[Adapter] | list[None]
) -> float:
    """All requests at once, to the end. Returns output tokens per second."""
    for index, adapter in enumerate(adapters):
        prompt = [3 + (index * 7 + at) % 400 for at in range(arguments.prompt_tokens)]
        engine.submit(
            Submit(
                handle=index,
                prompt=prompt,
                sampling=Sampling(max_tokens=arguments.new_tokens, ignore_eos=True),
                adapter=adapter,
                arrival_s=time.monotonic(),
            )
        )
    started = time.perf_counter()
    while engine.has_work:
        _check(engine)
    elapsed = time.perf_counter() - started
    return len(adapters) * arguments.new_tokens / elapsed


def _check(engine: Engine) -> None:
    result = engine.step()
    if result.failures:
        raise SystemExit(f"a request failed: {result.failures[0][1]}")


def _device_name(device_type: str) -> str:
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
