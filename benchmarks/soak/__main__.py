"""Very many mixed requests through one engine: nothing may leak, no token may be another's.

    python -m benchmarks.soak [--requests 100000] [--seed 0] [--out DIR]

The `tiny` shape in float32, in this process, through small tiers and a pool that is too small for
what runs: base and many adapters of ranks 1 to 256, DoRA and biases among them, priorities,
tenants, deadlines, objectives, cancellations at random moments, requests continued from elsewhere,
adapters whose source is gone or changed, and one that makes NaN. Every token is compared with the
answer that the same prompt and adapter gave alone. At the end no page, sequence, cached block or
packed adapter may be left, and no table may have grown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.models import SHAPES, write_model
from benchmarks.soak.adapters import RANKS, write_voices
from benchmarks.soak.reference import num_alike, references
from benchmarks.soak.run import Soak
from benchmarks.soak.traffic import Traffic
from dataplane.engine.setup import EngineParts, build_engine
from dataplane.engine_options import EngineOptions

SCHEMA = "chorale-soak/1"
PROMPT_TOKENS = (4, 24)
ANSWER_TOKENS = 40
WANTED = (
    "completed",
    "cancelled",
    "DEADLINE_EXCEEDED",
    "DEADLINE_HOPELESS",
    "OUTPUT_NOT_FINITE",
    "DIGEST_MISMATCH",
    "SOURCE_NOT_FOUND",
)
"""Ends that a soak of some length must have met, besides preemptions and prefix hits."""
_ENOUGH = 5000
_POOL_BYTES = 6 << 20
_ROOMY_BYTES = 96 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--adapters", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=8, help="of each adapter")
    parser.add_argument("--in-flight", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    arguments = parser.parse_args()
    if min(arguments.requests, arguments.adapters, arguments.prompts, arguments.in_flight) < 1:
        parser.error("--requests, --adapters, --prompts and --in-flight must be at least 1")
    with tempfile.TemporaryDirectory(prefix="chorale-soak-") as folder:
        report = soak(
            Path(folder),
            num_requests=arguments.requests,
            num_adapters=arguments.adapters,
            num_prompts=arguments.prompts,
            in_flight=arguments.in_flight,
            seed=arguments.seed,
            num_threads=arguments.threads,
        )
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n")


def soak(
    folder: Path,
    *,
    num_requests: int,
    num_adapters: int,
    num_prompts: int,
    in_flight: int,
    seed: int,
    num_threads: int = 0,
    ranks: Sequence[int] = RANKS,
    pool_bytes: int = _POOL_BYTES,
    check_every: int = 50,
) -> dict[str, Any]:
    """The report. Raises: BenchError at the first thing that is wrong."""
    shape = SHAPES["tiny"]
    write_model(folder / "model", shape)
    voices = write_voices(folder / "adapters", shape, num_good=num_adapters, ranks=ranks)
    say("computing the reference, each answer alone")
    with _engine(folder, pool_bytes=_ROOMY_BYTES, num_threads=num_threads) as parts:
        answers = references(
            parts.engine,
            [None, *voices.good],
            num_prompts=num_prompts,
            prompt_tokens=PROMPT_TOKENS,
            num_tokens=ANSWER_TOKENS,
            vocab_size=shape.vocab_size,
            seed=seed,
        )
    del parts
    alike = num_alike(answers)
    if alike:
        raise BenchError("REFERENCE_UNCLEAR", f"{alike} answers are those of another adapter too")
    with _engine(folder, pool_bytes=pool_bytes, num_threads=num_threads, tight=True) as parts:
        traffic = Traffic(voices, answers, seed=seed, deadline_s=(0.0, 1.0))
        result = Soak(
            parts, traffic, num_requests, in_flight, check_every=check_every, show=say
        ).run()
    if num_requests >= _ENOUGH:
        missing = [kind for kind in WANTED if not result["ended"].get(kind)]
        missing += [k for k in ("num_preemptions", "num_prefix_hit_tokens") if not result[k]]
        if missing:
            raise BenchError("SOAK_TOO_EASY", f"never happened: {', '.join(missing)}")
    return {
        "schema": SCHEMA,
        "benchmark": "soak",
        **provenance(),
        "shape": "tiny",
        "dtype": "float32",
        "seed": seed,
        "in_flight": in_flight,
        "num_adapters": num_adapters,
        "ranks": list(ranks),
        "pool_pages": parts.ready.num_pages,
        **result,
    }


@contextmanager
def _engine(
    folder: Path, *, pool_bytes: int, num_threads: int, tight: bool = False
) -> Iterator[EngineParts]:
    parts = build_engine(
        EngineOptions(
            model_dir=str(folder / "model"),
            model_name="soak",
            device="cpu",
            dtype="float32",
            pool_bytes=pool_bytes,
            page_tokens=8,
            max_running=32,
            max_batch_tokens=96,
            max_context_tokens=PROMPT_TOKENS[1] + ANSWER_TOKENS,
            num_threads=num_threads,
            # Tight tiers let go of most adapters between two uses.
            host_cache_bytes=(12 if tight else 512) << 20,
            disk_cache_bytes=(16 if tight else 512) << 20,
            disk_cache_dir=str(folder / ("disk" if tight else "reference-disk")),
            adapter_roots=(str(folder),),
        ),
        on_loaded=lambda: None,
    )
    parts.loader.start()
    try:
        yield parts
    finally:
        parts.loader.stop()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
