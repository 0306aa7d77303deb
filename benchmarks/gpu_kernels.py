"""Each kernel's part of the roofline on the device at hand.

    python -m benchmarks.gpu_kernels [--ops decode prefill kv fused lora sampling quantized experts]
                                     [--device cuda|cpu] [--shapes real|tiny] [--out FILE]

Roofline time of a call: the most of (the bytes it must move at least ÷ the measured copy bandwidth)
and (its operations ÷ the measured matmul rate). Printed and, with --out, written as JSON: that time
÷ the measured one. On a GPU calls are captured in a graph, over copies of their tensors that
together do not fit in the cache, so neither launches nor a warm cache are measured. Needs torch,
and Triton for a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.timing import device_name, measure_on, rates
from benchmarks.kernel_cases import (
    SHAPES,
    KernelCase,
    Shapes,
    decode_cases,
    fused_cases,
    kv_cases,
    prefill_cases,
)
from benchmarks.load.provenance import provenance

SCHEMA = "chorale-kernel-bench/1"


def lora_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    # numba, which LoRA on CPU needs, may be missing on a machine that measures other kernels.
    from benchmarks import kernel_lora_cases

    return kernel_lora_cases.lora_cases(shapes, device, dtype)


def sampling_cases(
    shapes: Shapes, device: torch.device, dtype: torch.dtype
) -> Iterator[KernelCase]:
    # As above.
    from benchmarks import kernel_sampling_cases

    return kernel_sampling_cases.sampling_cases(shapes, device, dtype)


def quantized_cases(
    shapes: Shapes, device: torch.device, dtype: torch.dtype
) -> Iterator[KernelCase]:
    # As above.
    from benchmarks import kernel_quantized_cases

    return kernel_quantized_cases.quantized_cases(shapes, device, dtype)


def expert_cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[KernelCase]:
    # As above.
    from benchmarks import kernel_expert_cases

    return kernel_expert_cases.expert_cases(shapes, device, dtype)


OPS = {
    "decode": decode_cases,
    "prefill": prefill_cases,
    "kv": kv_cases,
    "fused": fused_cases,
    "lora": lora_cases,
    "sampling": sampling_cases,
    "quantized": quantized_cases,
    "experts": expert_cases,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--shapes", choices=SHAPES, default="real")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; --device cpu --shapes tiny is a dry run")
    report = run(
        arguments.ops,
        SHAPES[arguments.shapes],
        torch.device(arguments.device),
        getattr(torch, arguments.dtype),
        arguments.rounds,
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


@torch.inference_mode()
def run(
    ops: list[str], shapes: Shapes, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    measure = measure_on(device, rounds)
    bandwidth, flops = rates(device, dtype, measure)
    name = device_name(device)
    print(f"{name}: copy {bandwidth / 1e9:.1f} GB/s, matmul {flops / 1e12:.2f} TFLOP/s")
    cases: list[dict[str, Any]] = []
    for op in ops:
        for case in OPS[op](shapes, device, dtype):
            seconds = measure(case.make, case.bytes)
            roofline_s = max(case.bytes / bandwidth, case.flops / flops)
            cases.append(
                {
                    "op": case.op,
                    "shape": case.shape,
                    "bytes": case.bytes,
                    "flops": case.flops,
                    "seconds": seconds,
                    "roofline_s": roofline_s,
                    "fraction": roofline_s / seconds,
                }
            )
            print(
                f"{case.op:18} {case.shape:52} {seconds * 1e6:10.1f} us"
                f" {100 * roofline_s / seconds:6.1f}% of roofline"
            )
            sys.stdout.flush()
    return {
        "schema": SCHEMA,
        **provenance(),
        "torch": torch.__version__,
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": rounds,
        "copy_bytes_per_s": bandwidth,
        "matmul_flops_per_s": flops,
        "cases": cases,
    }


if __name__ == "__main__":
    sys.exit(main())
