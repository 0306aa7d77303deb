"""Ahead-of-time compilation of Triton kernels: needs no GPU, and shows what one would be asked for.

    built = compile_kernel(
        kernel, "sm_90",
        {"x": "*bf16:16", "stride": "i32:16", "num_tokens": "i32"},  # in the order of its arguments
        {"BLOCK": 64},
        {"num_warps": 4, "num_stages": 2},
    )
    assert built.shared_bytes <= TARGETS["sm_90"].shared_bytes and built.spilled_bytes <= FEW_BYTES

Types are Triton's; ":16" says what the launcher would find out by itself: divisible by 16.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_CACHE_DIR = Path(tempfile.gettempdir()) / f"chorale-triton-aot-{os.getuid()}"
"""Kept between runs: Triton keys its entries by source, target and options."""


class Target(NamedTuple):
    gpu: GPUTarget
    shared_bytes: int  # the most one program may ask for


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


FEW_BYTES = 64
"""Of a thread's stack: what some releases of Triton put there outside of loops."""


class Built(NamedTuple):
    shared_bytes: int
    registers: int  # of one thread
    spilled_bytes: int  # of one thread, in local memory
    asm: Mapping[str, Any]  # "ptx" or "amdgcn", "ttgir", …


def compile_kernel(
    kernel: Any,
    target: str,
    arguments: Mapping[str, str],
    constexprs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Built:
    """arguments: name -> type of all that are not constexpr. Raises what the compiler raises."""
    names = list(kernel.arg_names)
    assert set(names) == {*arguments, *constexprs}, set(names) ^ {*arguments, *constexprs}
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        kind, _, divisible = arguments.get(name, "constexpr").partition(":")
        signature[name] = kind
        if divisible:
            attributes[(index,)] = [["tt.divisibility", int(divisible)]]
    values = {(names.index(name),): value for name, value in constexprs.items()}
    source = ASTSource(kernel, signature, values, attributes)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(_CACHE_DIR)
        # From 3.9 on, Triton warns when this is left to its default.
        chosen = {"enable_fp_fusion": True, **options}
        compiled = triton.compile(source, target=TARGETS[target].gpu, options=chosen)
    registers, spilled = _resources(compiled.asm)
    return Built(compiled.metadata.shared, registers, spilled, compiled.asm)


def _resources(asm: Mapping[str, Any]) -> tuple[int, int]:
    if "amdgcn" in asm:
        # One count for all of a wave's lanes: each spilled register is 4 bytes in every lane.
        found = {
            name: int(re.search(rf"\.{name}:\s+(\d+)", asm["amdgcn"])[1])  # pyright: ignore
            for name in ("vgpr_count", "vgpr_spill_count")
        }
        return found["vgpr_count"], 4 * found["vgpr_spill_count"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]
