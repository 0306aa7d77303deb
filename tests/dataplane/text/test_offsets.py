"""Where tokens begin in their text, by detokenizers of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.text.offsets import TextOffsets
from dataplane.text.tokenizer import load_tokenizer
from tests.helpers.tokenizers import sentencepiece, write_tokenizer


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # token_text, what its push made certain, what is held back
        ([("<s>", "", 0), ("a", "a", 0), (" b", " b", 0)], [0, 0, 1]),
        ([("a", "a", 0), ("\ufffd", "", 0), ("\ufffd", "\u00e9", 0), ("b", "b", 0)], [0, 1, 1, 2]),
        ([("a\ufffd", "a", 0), ("\ufffdb", "\u00e9b", 0), ("c", "c", 0)], [0, 1, 3]),
        # a blank at the beginning is stripped
        ([(" Hello", "Hello", 0), (" you", " you", 0)], [0, 5]),
    ],
)
def test_offsets(tokens: list[tuple[str, str, int]], expected: list[int]) -> None:
    offsets = TextOffsets()
    assert [offsets.next(*each) for each in tokens] == expected


@pytest.mark.parametrize("strip", [False, True])
def test_runs_of_bytes(tmp_path: Path, strip: bool) -> None:
    """Their text is certain when they end only, and they may be of many characters."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, sentencepiece(strip=strip)))
    text = "\U0001f600\U0001f601 \u00e9a the\u6f22\u5b57"
    ids = tokenizer.encode(text, max_tokens=100)
    made = tokenizer.decode(ids)
    detokenizer, offsets = tokenizer.detokenizer(), TextOffsets()
    by_offset: dict[int, int] = {}
    for token_id in ids:
        token_text = tokenizer.token_text(token_id)
        certain = detokenizer.push(token_id)
        offset = offsets.next(token_text, certain, detokenizer.num_held)
        by_offset[offset] = by_offset.get(offset, 0) + 1
        assert "\ufffd" in token_text or made[offset:].startswith(token_text.strip())
    for character in "\U0001f600\U0001f601\u6f22\u5b57":
        assert by_offset[made.index(character)] >= len(character.encode())
