"""Bringing the tokens of each expert together on CPU, and telling its products of them.

A slot is a token at one of its experts. Slots of one expert are adjacent, in the order of tokens,
and experts are in ascending order; those that no token has chosen are not in it at all.
"""

from __future__ import annotations

from typing import Any

from kernels.cpu import threads
from kernels.cpu.compile import compiled
from kernels.cpu.floats import BITS
from kernels.linear import arguments as args
from kernels.linear.tiling import cut, most_tiles
from kernels.lora.plan import BLOCK_TOKENS

(
    NUM_TOKENS,
    TOP_K,
    NUM_EXPERTS,
    CHOSEN,  # [num_tokens, top_k] int64
    SLOTS,  # [num_tokens, top_k] int64: where each of them is
    TOKENS,  # [slots] int64: of each slot
    STARTS,  # [experts + 1] int64: where each expert's slots begin
    COUNT,  # int64: experts that have any
    TILES,  # [at most slots, 3] int64
    NUM_FIELDS,
) = range(10)
"""A plan's fields, counts and addresses; then come PRODUCT_FIELDS for each product, gate_up and
down, none where they are not done by these kernels."""

(
    P_IN,
    P_OUT,
    P_PANELS,
    P_WEIGHTS,  # [experts] int64: addresses of panels
    P_X,  # [slots, in] bfloat16
    P_Y,  # [slots, out] bfloat16
    P_MULTIPLY,  # [experts, args.NUM_ARGUMENTS] int64, to be filled
    P_INTERLEAVE,  # [experts, args.I_NUM_ARGUMENTS] int64, to be filled; 0: inputs as they stand
    P_INTERLEAVED,  # where interleaved inputs go
    P_ROW_WORDS,  # of 4 bytes, that a row of them takes
    PRODUCT_FIELDS,
) = range(11)
PLAN_SIZE = NUM_FIELDS + 2 * PRODUCT_FIELDS

G_NEXT, _, G_PLAN, G_NUM_PRODUCTS, G_NUM_ARGUMENTS = range(5)


@threads.worker
def group_work(pointer: Any) -> None:  # pragma: no cover - compiled
    """One thread does all of it, the others go on to the meeting."""
    a = threads.told(pointer, G_NUM_ARGUMENTS)
    if threads.take(a, G_NEXT) > 0:
        return
    plan = threads.array(a[G_PLAN], a, (PLAN_SIZE,))
    num_tokens, top_k, num_experts = plan[NUM_TOKENS], plan[TOP_K], plan[NUM_EXPERTS]
    num_slots = num_tokens * top_k
    chosen = threads.array(plan[CHOSEN], a, (num_slots,))
    slots = threads.array(plan[SLOTS], a, (num_slots,))
    tokens = threads.array(plan[TOKENS], a, (num_slots,))
    starts = threads.array(plan[STARTS], a, (num_experts + 1,))
    starts[:] = 0
    for each in range(num_slots):
        starts[chosen[each] + 1] += 1
    for expert in range(num_experts):
        starts[expert + 1] += starts[expert]
    for each in range(num_slots):  # which leaves each start where the next expert's was
        slot = starts[chosen[each]]
        starts[chosen[each]] += 1
        slots[each] = slot
        tokens[slot] = each // top_k
    for expert in range(num_experts, 0, -1):
        starts[expert] = starts[expert - 1]
    starts[0] = 0
    all_tiles = threads.array(plan[TILES], a, (num_slots, 3))
    count = first_tile = rows_before = 0
    for expert in range(num_experts):
        start, size = starts[expert], starts[expert + 1] - starts[expert]
        if size == 0:
            continue
        tiles = all_tiles[first_tile : first_tile + most_tiles(size)]
        num_tiles = cut(size, tiles)
        tiles_at = plan[TILES] + first_tile * 24
        for product in range(a[G_NUM_PRODUCTS]):
            p = plan[NUM_FIELDS + product * PRODUCT_FIELDS :]
            multiply = threads.array(p[P_MULTIPLY], a, (num_experts, args.NUM_ARGUMENTS))
            inputs = p[P_X] + start * p[P_IN] * 2
            if p[P_INTERLEAVE] != 0:
                told = threads.array(p[P_INTERLEAVE], a, (num_experts, args.I_NUM_ARGUMENTS))[count]
                told[0] = told[1] = 0
                told[args.I_NUM_TOKENS], told[args.I_FEATURES] = size, p[P_IN]
                told[args.I_NUM_TILES], told[args.I_TILES] = num_tiles, tiles_at
                told[args.I_X] = inputs
                inputs = p[P_INTERLEAVED] + rows_before * p[P_ROW_WORDS] * 4
                told[args.I_OUT] = inputs
            weights = threads.array(p[P_WEIGHTS], a, (num_experts,))
            block = multiply[count]
            block[0] = block[1] = 0
            block[args.NUM_TOKENS], block[args.IN_FEATURES] = size, p[P_IN]
            block[args.NUM_PANELS] = p[P_PANELS]
            block[args.NUM_TILES], block[args.TILES] = num_tiles, tiles_at
            block[args.X], block[args.WEIGHTS] = inputs, weights[expert]
            block[args.BIAS] = block[args.SCRATCH] = 0
            block[args.Y], block[args.AFTER] = p[P_Y] + start * p[P_OUT] * 2, 0
            if count > 0:
                multiply[count - 1, args.AFTER] = weights[expert]
        rows_before += tiles[num_tiles - 1, 1] + tiles[num_tiles - 1, 2]
        first_tile += num_tiles
        count += 1
    threads.array(plan[COUNT], a, (1,))[0] = count


def most_rows(num_slots: int) -> int:
    """Of all tiles together, however the slots are shared out."""
    return 2 * num_slots


@compiled
def lora_blocks(
    starts: Any, tokens: Any, spans: Any, blocks: Any
) -> Any:  # pragma: no cover - compiled
    """Tells LoRA of slots, as `LoraSpans.blocks` does of tokens, and returns how many blocks there
    are. Within one expert, slots of one adapter are adjacent, as tokens are in order.

    starts: [experts + 1]; tokens: [slots], of each slot; spans: [n, 2] in order; blocks: room for
    one for each slot.
    """
    count = 0
    for expert in range(starts.size - 1):
        slot, end, span = starts[expert], starts[expert + 1], 0
        while slot < end:
            while span < len(spans) and spans[span, 1] <= tokens[slot]:
                span += 1
            if span == len(spans):
                break
            if tokens[slot] < spans[span, 0]:
                slot += 1
                continue
            first = slot
            while slot < end and slot < first + BLOCK_TOKENS and tokens[slot] < spans[span, 1]:
                slot += 1
            block = blocks[count]
            block[0], block[1], block[2], block[3] = span, first, slot - first, expert
            count += 1
    return count


B_NEXT, _, B_NUM_SLOTS, B_ROW_WORDS, B_TOKENS, B_X, B_OUT, B_NUM_ARGUMENTS = range(8)


@threads.worker
def gather_work(pointer: Any) -> None:  # pragma: no cover - compiled
    """out[slot] = x[tokens[slot]]; rows of so many pairs of bytes."""
    a = threads.told(pointer, B_NUM_ARGUMENTS)
    num_slots, width = a[B_NUM_SLOTS], a[B_ROW_WORDS]
    tokens = threads.array(a[B_TOKENS], a, (num_slots,))
    while True:
        slot = threads.take(a, B_NEXT)
        if slot >= num_slots:
            return
        source = threads.array(a[B_X] + tokens[slot] * width * 2, BITS, (width,))
        target = threads.array(a[B_OUT] + slot * width * 2, BITS, (width,))
        for k in range(width):
            target[k] = source[k]
