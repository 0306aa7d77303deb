"""Finds tiles for the LoRA kernels on this machine's GPU and writes them to the table they are read
from, kernels/tuning/lora.json:

    python -m benchmarks.tune_kernels [--table FILE]

One field of a tile after another is varied, and what is fastest over the projection groups of
Llama 3 8B is kept, until no change helps. A tile that gives wrong results is an error, and one that
the device has no room for is passed over. See docs/kernels.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.load.provenance import provenance
from benchmarks.tune_cases import Measured, measured_cases
from kernels.lora.tuning import TABLE, LoraTiles, Regime, device_key, lora_tiles

_CHOICES: dict[str, dict[str, list[int]]] = {
    "shrink": {
        "block_rank": [16, 32, 64],
        "block_k": [32, 64, 128, 256, 512],
        "k_per_split": [512, 1024, 2048, 4096],
        "num_warps": [2, 4, 8],
        "num_stages": [1, 2, 3, 4],
    },
    "expand": {
        "block_rank": [16, 32, 64],
        "block_out": [64, 128, 256, 512],
        "num_warps": [2, 4, 8],
        "num_stages": [1, 2, 3],
    },
    "affine": {"block_out": [64, 128, 256, 512], "num_warps": [2, 4, 8]},
}
_MIN_GAIN = 0.01  # less is noise


def tuned(regime: Regime, measure: Callable[[str, Regime], float]) -> Regime:
    """The best found by varying one field at a time. block_tokens stays: the tile map is cut by it.

    measure: seconds of a kernel ("shrink", "expand", "affine") with a regime's tiles; infinite
        where they do not fit the device.
    """
    for kernel, choices in _CHOICES.items():
        best_s = measure(kernel, regime)
        improved = True
        while improved:
            improved = False
            for field, values in choices.items():
                for value in values:
                    tile = getattr(regime, kernel)._replace(**{field: value})
                    if tile == getattr(regime, kernel) or not _is_whole(tile):
                        continue
                    candidate = regime._replace(**{kernel: tile})
                    seconds = measure(kernel, candidate)
                    if seconds < best_s * (1 - _MIN_GAIN):
                        regime, best_s, improved = candidate, seconds, True
        if not math.isfinite(best_s):
            raise BenchError("NO_TILE_FITS", f"no tile of {kernel} fits this device")
    return regime


def table_entry(tiles: LoraTiles, source: str) -> dict[str, Any]:
    def regime(each: Regime) -> dict[str, Any]:
        return {
            "block_tokens": each.block_tokens,
            "shrink": each.shrink._asdict(),
            "expand": each.expand._asdict(),
            "affine": each.affine._asdict(),
        }

    return {
        "from": source,
        "tiles": {name: regime(getattr(tiles, name)) for name in LoraTiles._fields},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="file whose entry is written")
    table_path: Path = parser.parse_args().table
    if not torch.cuda.is_available():
        sys.exit("error: NO_GPU: tuning needs a CUDA or ROCm device, and torch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    before = lora_tiles(device)
    after: dict[str, Regime] = {}
    try:
        for name in LoraTiles._fields:
            measure = _measuring(measured_cases(name, device), name)
            after[name] = tuned(getattr(before, name), measure)
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
    commit = provenance()["commit"]
    source = (
        f"measured on {torch.cuda.get_device_name(device)}, torch {torch.__version__}, {commit}"
    )
    table = json.loads(table_path.read_text()) if table_path.exists() else {}
    table[device_key(device)] = table_entry(LoraTiles(**after), source)
    table_path.write_text(json.dumps(table, indent=2) + "\n")
    print(f"wrote {device_key(device)} to {table_path}")


def _measuring(cases: list[Measured], name: str) -> Callable[[str, Regime], float]:
    def measure(kernel: str, regime: Regime) -> float:
        seconds = sum(case.seconds(kernel, regime) for case in cases)
        print(f"{name} {kernel} {tuple(getattr(regime, kernel))}: {seconds * 1e6:.1f} us")
        return seconds

    return measure


def _is_whole(tile: Any) -> bool:
    """A split is made of whole blocks."""
    return not hasattr(tile, "k_per_split") or tile.k_per_split % tile.block_k == 0


if __name__ == "__main__":
    main()
