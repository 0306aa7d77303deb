"""What Knuth, Morris and Pratt's search knows of its pattern."""

from __future__ import annotations

from collections.abc import Sequence


def borders(pattern: Sequence[object]) -> list[int]:
    """For each prefix of it: the length of its longest proper prefix that also ends it."""
    found = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = found[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        found[index] = length
    return found
