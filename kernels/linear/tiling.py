"""How the tokens of a step are cut into tiles, one after the other through a panel of weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from kernels.cpu.compile import compiled

SIZES = (1, 2, 4, 6, 8, 12)
"""Tokens of a tile. 12 rows of 2 vectors of sums, and a row of a panel, fill the registers."""
FEW_TILES = 2
"""So many tiles may be of any size; more are of 6 tokens and more."""


@compiled
def most_tiles(num_tokens: Any) -> Any:
    return (num_tokens + SIZES[-1] - 1) // SIZES[-1]


@cache
def tiles_of(num_tokens: int) -> np.ndarray[Any, Any]:
    """[num_tiles, 3] int64, as `cut` makes them."""
    tiles = np.zeros((most_tiles(num_tokens), 3), dtype=np.int64)
    return tiles[: cut(num_tokens, tiles)].copy()


@compiled
def cut(num_tokens: Any, tiles: Any) -> Any:  # pragma: no cover - compiled
    """Fills `tiles`, of each its first token, its rows (one of SIZES), the rows of those before,
    and returns how many there are. As even as can be; rows after the last token are zeros and are
    dropped. tiles: [`most_tiles`, 3] int64; num_tokens: at least 1."""
    left = most_tiles(num_tokens)
    smallest = 1 if left <= FEW_TILES else 6
    first = before = count = 0
    while first < num_tokens:
        wanted = max((num_tokens - first + left - 1) // left, smallest)
        rows = 0
        for size in SIZES:
            if rows == 0 and size >= wanted:
                rows = size
        tiles[count, 0], tiles[count, 1], tiles[count, 2] = first, rows, before
        before += rows
        first += min(rows, num_tokens - first)
        count += 1
        left -= 1
    return count


def num_rows(num_tokens: int) -> int:
    """Of all tiles together."""
    tiles = tiles_of(num_tokens)
    return int(tiles[-1, 1] + tiles[-1, 2])
