"""A sequence's tokens as an array, for penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

IdArray = np.ndarray[Any, np.dtype[np.int64]]


class History:
    """Of a list that only grows: each step converts what is new in it."""

    def __init__(self) -> None:
        self._ids: IdArray = np.empty(0, dtype=np.int64)
        self._size = 0

    def of(self, tokens: Sequence[int]) -> IdArray:
        """[len(tokens)]; good until the next call."""
        size = len(tokens)
        if size > len(self._ids):
            self._ids = np.resize(self._ids, 2 * size)
        self._ids[self._size : size] = tokens[self._size :]
        self._size = size
        return self._ids[:size]
