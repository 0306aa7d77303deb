"""The GPU benchmark of whole models, in parts that a later run goes on with.

    python -m benchmarks.gpu [--budget 500] [--parts NAME ...] [--fresh] [--out DIR]
                             [--peer-lora DIR] [--device cpu --shape tiny]

Each part writes its section to DIR/gpu-<device>.json as soon as it is done, and is not begun when
the budget would pass. A rerun does what is missing; --fresh does all of it anew. At the end stands
what must hold, value beside limit. --device cpu --shape tiny is a dry run, of no meaning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.errors import BenchError
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.bounds import judge, print_judged
from benchmarks.gpu.cold import cold_start
from benchmarks.gpu.decode import decode
from benchmarks.gpu.interference import interference
from benchmarks.gpu.kernels import GROUPS, kernels
from benchmarks.gpu.parts import Budget, Clock, Part, run_parts
from benchmarks.gpu.peer import peer_lora
from benchmarks.gpu.profile import profile
from benchmarks.gpu.record import Record, report_name
from benchmarks.gpu.scale import SCALES, Scale
from benchmarks.gpu.slora import slora
from benchmarks.gpu.truefoundry import truefoundry
from benchmarks.gpu.variants import VARIANTS, variants
from dataplane.engine import process_settings

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main(argv: list[str] | None = None, clock: Clock | None = None) -> int:
    """clock: monotonic seconds, for the budget."""
    arguments = _arguments(argv)
    process_settings.settle()
    device = torch.device(arguments.device)
    scale = SCALES[arguments.shape]
    scale = replace(scale, share=scale.share * arguments.share)
    budget = Budget(arguments.budget, clock) if clock else Budget(arguments.budget)
    with tempfile.TemporaryDirectory(prefix="chorale-gpu-") as folder:
        bench = Bench(
            scale,
            device,
            _DTYPES[arguments.dtype],
            Path(folder),
            budget,
            peer=arguments.peer_lora,
        )
        setting = {
            "device": bench.device_name,
            "device_type": device.type,
            "shape": arguments.shape,
            "dtype": arguments.dtype,
        }
        path = arguments.out / report_name(bench.device_name, arguments.shape)
        record = Record(path, setting, fresh=arguments.fresh)
        chosen = [part for part in parts(bench) if part.name in arguments.parts]
        run_parts(chosen, record, budget, commit=arguments.commit, say=_say)
        record.must_hold = judge(scale, record)
        record.write()
    print_judged(record.must_hold)
    print(f"written to {path}")
    failed = [part.name for part in chosen if record.sections.get(part.name, {}).get("reason")]
    return 1 if failed else 0


def parts(bench: Bench) -> list[Part]:
    """The most important first. Estimates are of an H100, with room."""
    return [
        *(Part(f"decode-{name}", 75, partial(decode, bench, name)) for name in bench.scale.decode),
        Part("peer-lora", 40, partial(peer_lora, bench)),
        *(Part(name, 95, partial(slora, bench, name)) for name in bench.scale.slora.settings),
        *(
            Part(name, 70, partial(variants, bench, name, variant))
            for name, variant in VARIANTS.items()
        ),
        Part("profile", 40, partial(profile, bench)),
        Part("cold-start", 45, partial(cold_start, bench)),
        Part("interference", 110, partial(interference, bench)),
        Part("truefoundry", 40, partial(truefoundry, bench)),
        Part("kernels-attention", 45, partial(kernels, bench, "kernels-attention")),
        Part("kernels-lora", 75, partial(kernels, bench, "kernels-lora")),
        Part("kernels-fused", 35, partial(kernels, bench, "kernels-fused")),
        Part("kernels-quantized", 25, partial(kernels, bench, "kernels-quantized")),
        Part("kernels-experts", 25, partial(kernels, bench, "kernels-experts")),
    ]


def part_names(scale: Scale) -> list[str]:
    return [
        *(f"decode-{name}" for name in scale.decode),
        *scale.slora.settings,
        *("peer-lora", *VARIANTS, "profile", "cold-start", "interference", "truefoundry", *GROUPS),
    ]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=SCALES, default="real")
    parser.add_argument("--dtype", choices=_DTYPES, default="")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds for all parts")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of each part's rounds: fewer of them"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--peer-lora", type=Path, metavar="DIR", help="vLLM's LoRA kernels")
    parser.add_argument("--commit", default="", help="of the source tree, where git is not")
    arguments = parser.parse_args(argv)
    names = part_names(SCALES[arguments.shape])
    arguments.parts = arguments.parts or names
    if unknown := sorted(set(arguments.parts) - set(names)):
        parser.error(f"--parts {' '.join(unknown)}: there are {', '.join(names)}")
    if not 0 < arguments.share <= 1:
        parser.error(f"--share {arguments.share:g}: it must be above 0 and at most 1")
    if not arguments.budget > 0:
        parser.error(f"--budget {arguments.budget:g}: it must be above 0 seconds")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; --device cpu --shape tiny is a dry run")
    if arguments.device == "cpu" and arguments.shape == "real":
        parser.error("--device cpu: the real shapes need a GPU; give --shape tiny")
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    return arguments


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
