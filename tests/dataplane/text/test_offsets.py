"""Where tokens begin in their text, by detokenizers of each kind."""

from __future__ import annotations

import pytest

from dataplane.text.offsets import TextOffsets


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # token_text, and what its push made certain
        ([("<s>", ""), ("a", "a"), (" b", " b")], [0, 0, 1]),
        ([("a", "a"), ("\ufffd", ""), ("\ufffd", "\u00e9"), ("b", "b")], [0, 1, 1, 2]),
        ([("a\ufffd", "a"), ("\ufffdb", "\u00e9b"), ("c", "c")], [0, 1, 3]),
        # runs of bytes are certain with what follows them
        ([("\ufffd", ""), ("\ufffd", ""), (" abc", "\u00e9 abc"), ("d", "d")], [0, 0, 1, 5]),
        # a blank at the beginning is stripped
        ([(" Hello", "Hello"), (" you", " you")], [0, 5]),
    ],
)
def test_offsets(tokens: list[tuple[str, str]], expected: list[int]) -> None:
    offsets = TextOffsets()
    assert [offsets.next(*each) for each in tokens] == expected
