"""Which tiles the Triton kernels use: looked up in a committed table, never searched for here.

The table, kernels/tuning/lora.json, has an entry per kind of device and says where each came from;
`python -m benchmarks.tune_kernels` writes one. A device without an entry takes "default".
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

TABLE = Path(__file__).parent.parent / "tuning" / "lora.json"


class ShrinkTile(NamedTuple):
    block_rank: int
    block_k: int
    k_per_split: int  # a multiple of block_k
    num_warps: int
    num_stages: int


class ExpandTile(NamedTuple):
    block_rank: int
    block_out: int
    num_warps: int
    num_stages: int


class AffineTile(NamedTuple):
    block_out: int
    num_warps: int


class Regime(NamedTuple):
    """Tiles for batches whose longest segment has so many tokens, or any number of them."""

    block_tokens: int
    shrink: ShrinkTile
    expand: ExpandTile
    affine: AffineTile


class LoraTiles(NamedTuple):
    """A regime takes segments of up to block_tokens; prefill, of any length."""

    decode: Regime  # many adapters, a token or a few of each
    shared: Regime  # decode steps where each adapter has many tokens
    prefill: Regime

    def regime(self, max_segment_tokens: int) -> Regime:
        for each in (self.decode, self.shared):
            if max_segment_tokens <= each.block_tokens:
                return each
        return self.prefill


def lora_tiles(device: torch.device) -> LoraTiles:
    return tiles_of(device_key(device))


@lru_cache
def device_key(device: torch.device) -> str:
    """ "sm_90", "gfx942", …; "default" for what is no GPU."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@lru_cache
def tiles_of(key: str) -> LoraTiles:
    table = json.loads(TABLE.read_text())
    return parse_tiles(table.get(key, table["default"])["tiles"])


def parse_tiles(entry: dict[str, Any]) -> LoraTiles:
    def regime(part: dict[str, Any]) -> Regime:
        return Regime(
            part["block_tokens"],
            ShrinkTile(**part["shrink"]),
            ExpandTile(**part["expand"]),
            AffineTile(**part["affine"]),
        )

    return LoraTiles(*(regime(entry[name]) for name in LoraTiles._fields))


def tile_width(block: int, itemsize: int, page_elems: int, align: int) -> int:
    """A tile's columns that fit: half of `block` for 4-byte elements and for those that are read
    one by one, which take more registers; and no more than a page has."""
    if itemsize > 2 or align == 1:
        block //= 2
    return min(block, 1 << (page_elems.bit_length() - 1))
