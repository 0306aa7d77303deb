"""How the tokens of a step are cut into tiles, one after the other through a panel of weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SIZES = (1, 2, 4, 6, 8, 12)
"""Tokens of a tile. 12 rows of 2 vectors of sums, and a row of a panel, fill the registers."""
FEW_TILES = 2
"""So many tiles may be of any size; more are of 6 tokens and more."""


@cache
def tiles_of(num_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, 3] int64, of each tile: its first token, its rows (one of SIZES), the rows of
    those before. As even as can be; rows after the last token are zeros and are dropped."""
    count = -(-num_tokens // SIZES[-1])
    smallest = 1 if count <= FEW_TILES else 6
    tiles: list[tuple[int, int, int]] = []
    first = before = 0
    for left in range(count, 0, -1):
        wanted = max(-(-(num_tokens - first) // left), smallest)
        rows = next(size for size in SIZES if size >= wanted)
        tiles.append((first, rows, before))
        before += rows
        first += min(rows, num_tokens - first)
        if first == num_tokens:
            break
    return np.array(tiles, dtype=np.int64)


def num_rows(num_tokens: int) -> int:
    """Of all tiles together."""
    tiles = tiles_of(num_tokens)
    return int(tiles[-1, 1] + tiles[-1, 2])
