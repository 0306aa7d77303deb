"""Reading matrices in place from an adapter's pages, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def paged_tile(
    ids,
    offsets,
    rows,
    length,
    PAGE_ELEMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Where the tile of a matrix lies whose row r begins at offsets[r] of the pages' flat array.

    ids: pointer to the adapter's page ids. offsets: [R] int32. rows: [R], which are wanted; the
    table is read for no others. length: columns that are left in each row, which may be fewer than
    WIDTH. WIDTH <= PAGE_ELEMS, so that a row's part lies in at most two pages. ALIGN: offsets,
    PAGE_ELEMS and the matrix' width are multiples of it.

    Returns [R, WIDTH] int64: elements from the start of the layer's pages. Meaningless where not
    wanted: the caller masks.
    """
    first = offsets // PAGE_ELEMS
    at = offsets % PAGE_ELEMS
    crosses = at + length > PAGE_ELEMS
    here = tl.load(ids + first, mask=rows, other=0).to(tl.int64) * PAGE_ELEMS + at
    there = tl.load(ids + first + 1, mask=rows & crosses, other=0).to(tl.int64) * PAGE_ELEMS + at
    columns = tl.arange(0, WIDTH)
    in_first = at[:, None] + columns[None, :] < PAGE_ELEMS  # [R, WIDTH]
    begin = tl.where(in_first, here[:, None], (there - PAGE_ELEMS)[:, None])
    # The compiler cannot see through the select that ALIGN neighbours always share a page.
    tile = tl.multiple_of(begin + columns[None, :], [1, ALIGN])
    return tl.max_contiguous(tile, [1, ALIGN])


@triton.jit
def aligned(value, ALIGN: tl.constexpr):
    """A multiple of ALIGN, in a form that shows the compiler that it is one."""
    return value // ALIGN * ALIGN


@triton.jit
def slice_of_block(block, width_0, width_1, width_2, BLOCK: tl.constexpr):
    """Which of three slices, cut into blocks of BLOCK columns and laid end to end, block `block`
    falls into, and its first column there: past the slice's width when there are fewer blocks."""
    blocks_0 = tl.cdiv(width_0, BLOCK)
    blocks_1 = tl.cdiv(width_1, BLOCK)
    index = (block >= blocks_0).to(tl.int32) + (block >= blocks_0 + blocks_1).to(tl.int32)
    before = tl.where(index >= 1, blocks_0, 0) + tl.where(index == 2, blocks_1, 0)
    width = tl.where(index == 0, width_0, tl.where(index == 1, width_1, width_2))
    return index, (block - before) * BLOCK, width
