"""Adapters' tiles over the slots of a mixture of experts, in Triton: CUDA and ROCm. Which slots
there are is known on the device alone, so tiles are made there, and the LoRA kernels read them as
they read those of tokens. Nothing goes to the host, and grids depend on shapes alone."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.experts.triton_products import FEW_SLOTS
from kernels.experts.triton_route import Routed
from kernels.gpu.dispatch import device_name
from kernels.gpu.tuning import launch_options, tuned
from kernels.lora.bucket import TILE_FIELDS
from kernels.lora.metadata import LoraBatchMetadata, LoraGroup
from kernels.lora.triton_expand import expand
from kernels.lora.triton_shrink import shrink
from kernels.lora.tuning import lora_tiles


@triton.jit(
    do_not_specialize=["num_slots", "num_tiles", "max_segments"],
    do_not_specialize_on_alignment=["tiles"],
)
def slot_keys_kernel(
    order_ptr,
    chosen_ptr,
    tiles,
    keys_ptr,
    num_slots,
    num_tiles,
    max_segments,
    TILE_FIELDS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """grid (blocks of slots in order,). One program: each slot's key, expert * max_segments +
    segment, or -1 where its token has no adapter. tiles: of tokens."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < num_slots
    slots = tl.load(order_ptr + at, mask=real, other=0)
    tokens = slots // TOP_K
    experts = tl.load(chosen_ptr + slots, mask=real, other=0)
    found = tl.zeros([BLOCK], tl.int32)  # segment + 1
    for begin in range(0, num_tiles, BLOCK_TILES):
        tile = begin + tl.arange(0, BLOCK_TILES)
        there = tile < num_tiles
        segment = tl.load(tiles + tile * TILE_FIELDS, mask=there, other=-1)
        first = tl.load(tiles + tile * TILE_FIELDS + 1, mask=there, other=0)
        count = tl.load(tiles + tile * TILE_FIELDS + 2, mask=there, other=0)
        count = tl.where(segment >= 0, count, 0)
        past = tokens[:, None] - first[None, :]  # [BLOCK, BLOCK_TILES]
        is_in = (past >= 0) & (past < count[None, :])
        found += tl.sum(tl.where(is_in, segment[None, :] + 1, 0), 1)
    keys = tl.where(found > 0, experts * max_segments + found - 1, -1)
    tl.store(keys_ptr + at, keys, mask=real)


@triton.jit(do_not_specialize=["num_slots", "num_tiles", "max_segments"])
def slot_tiles_kernel(
    keys_ptr,
    out_ptr,
    num_slots,
    num_tiles,
    max_segments,
    TILE_FIELDS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grid (num_slots / BLOCK_TOKENS,). One program: the tiles that begin among BLOCK_TOKENS slots.
    A tile is of slots of one key, and ends with these at the latest; before it lie those that begin
    in the programs before. The last program empties what is left.

    keys: [num_slots]; out: [num_tiles, TILE_FIELDS]: segment, first slot in order, slots, expert
    """
    begin = tl.program_id(0) * BLOCK_TOKENS
    before = 0
    for first in range(0, begin, BLOCK):
        at = first + tl.arange(0, BLOCK)
        real = at < begin
        key = tl.load(keys_ptr + at, mask=real, other=-1)
        previous = tl.load(keys_ptr + at - 1, mask=real & (at % BLOCK_TOKENS > 0), other=-1)
        before += tl.sum(((key >= 0) & (key != previous)).to(tl.int32), 0)  # pyright: ignore[reportOperatorIssue]
    lanes = tl.arange(0, BLOCK_TOKENS)
    at = begin + lanes
    real = at < num_slots
    key = tl.load(keys_ptr + at, mask=real, other=-1)
    previous = tl.load(keys_ptr + at - 1, mask=real & (lanes > 0), other=-1)
    begins = (key >= 0) & (key != previous)
    index = before + tl.cumsum(begins.to(tl.int32), 0) - 1
    # Slots of one key are adjacent, so those that have it are the tile.
    count = tl.sum((key[:, None] == key[None, :]).to(tl.int32), 1)
    tile = out_ptr + index * TILE_FIELDS
    tl.store(tile, key % max_segments, mask=begins)
    tl.store(tile + 1, at, mask=begins)
    tl.store(tile + 2, count, mask=begins)
    tl.store(tile + 3, key // max_segments, mask=begins)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        total = before + tl.sum(begins.to(tl.int32), 0)  # pyright: ignore[reportOperatorIssue]
        for first in range(total, num_tiles, BLOCK):
            empty = first + tl.arange(0, BLOCK)
            tl.store(out_ptr + empty * TILE_FIELDS, -1, mask=empty < num_tiles)


def most_slot_tiles(num_slots: int, num_experts: int, max_segments: int, block_tokens: int) -> int:
    """A tile begins where a program's slots do, and where an expert's or an adapter's do."""
    runs = min(num_slots, num_experts * max_segments)
    return min(num_slots, -(-num_slots // block_tokens) + runs)


def slot_metadata(metadata: LoraBatchMetadata, routed: Routed) -> LoraBatchMetadata:
    """As `metadata`, over slots in order in place of tokens. Of one launch's grids: what is told of
    the step's adapters is read where it is."""
    device, num_slots = routed.order.device, routed.order.numel()
    num_experts, max_segments = routed.starts.numel() - 1, metadata.bucket.max_segments
    is_few = num_slots <= FEW_SLOTS * num_experts  # by shapes alone, as captured steps must
    regime = lora_tiles(device).decode if is_few else metadata.regime
    block_tokens = regime.block_tokens
    num_tiles = most_slot_tiles(num_slots, num_experts, max_segments, block_tokens)
    keys = routed.order.new_empty(num_slots)
    tiles = routed.order.new_empty(num_tiles, TILE_FIELDS)
    settings = tuned("experts", device_name(device), "slots", "any")
    launch: Any = slot_keys_kernel[(triton.cdiv(num_slots, settings["block"]),)]
    launch(
        routed.order,
        routed.chosen,
        metadata.tiles,
        keys,
        num_slots,
        metadata.num_tiles,
        max_segments,
        TILE_FIELDS=TILE_FIELDS,
        TOP_K=routed.chosen.shape[1],
        BLOCK=settings["block"],
        BLOCK_TILES=settings["block_tiles"],
        **launch_options(settings),
    )
    launch = slot_tiles_kernel[(triton.cdiv(num_slots, block_tokens),)]
    launch(
        keys,
        tiles,
        num_slots,
        num_tiles,
        max_segments,
        TILE_FIELDS=TILE_FIELDS,
        BLOCK_TOKENS=block_tokens,
        BLOCK=settings["scan"],
        **launch_options(settings),
    )
    return metadata.over(tiles, regime)


def added(
    x: torch.Tensor,
    out_features: int,
    layer_pages: torch.Tensor,
    group: LoraGroup,
    slots: LoraBatchMetadata,
) -> torch.Tensor:
    """[num_slots, out_features]: what adapters add to a product of x, 0 where there is none.

    x: [num_slots, in_features], by slot in order. group: over tokens; slots: `slot_metadata`'s.
    """
    delta = x.new_zeros(len(x), out_features)
    of_slots = LoraGroup(slots, group.rows)
    expand(delta, shrink(x, layer_pages, of_slots), layer_pages, of_slots)
    return delta
