"""Where an activated LoRA's invocation stands in a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.text.borders import borders


def last_place(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """Where `wanted`, at least one token, begins in `tokens` for the last time; -1: nowhere.

    Knuth, Morris and Pratt's search from the end on: linear in both, whatever they hold.
    """
    pattern = wanted[::-1]
    failures = borders(pattern)
    matched = 0
    for at in range(len(tokens) - 1, -1, -1):
        token = tokens[at]
        while matched and token != pattern[matched]:
            matched = failures[matched - 1]
        if token == pattern[matched]:
            matched += 1
        if matched == len(pattern):
            return at
    return -1
