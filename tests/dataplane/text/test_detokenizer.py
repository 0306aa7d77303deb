from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dataplane.text.detokenizer import (
    ByteLevelDetokenizer,
    SentencePieceDetokenizer,
    WindowDetokenizer,
    detokenizer_for,
)
from dataplane.text.vocabulary import vocabulary_of
from tests.helpers import tokenizers as made

BYTE_LEVEL = made.byte_level()
KINDS: dict[str, tuple[Tokenizer, type]] = {
    "byte_level": (BYTE_LEVEL, ByteLevelDetokenizer),
    "sentencepiece_strip": (made.sentencepiece(strip=True), SentencePieceDetokenizer),
    "sentencepiece": (made.sentencepiece(strip=False), SentencePieceDetokenizer),
    "metaspace": (made.metaspace(), WindowDetokenizer),
    "wordpiece": (made.wordpiece(), WindowDetokenizer),
}
UNICODE = "héllo 👩‍👩‍👧 e\u0301 你好 世界 🇩🇪 \u2028 x\ufffd ص\u0651 \U0001d518 \x00 \t\n end"


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = detokenizer_for(vocabulary_of(tokenizer))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_kind_is_recognised(kind: str) -> None:
    tokenizer, expected = KINDS[kind]
    assert type(detokenizer_for(vocabulary_of(tokenizer))) is expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_what_decoding_all_at_once_gives(kind: str, data: st.DataObject) -> None:
    tokenizer, _ = KINDS[kind]
    # Ids past the vocabulary too: a model's embedding often has more rows than the tokenizer ids.
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
@example(text=UNICODE)
def test_byte_level_text_comes_back_and_no_piece_splits_a_character(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    got = pieces(BYTE_LEVEL, ids)
    assert "".join(got) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)
    assert "".join(got).count("\ufffd") == text.count("\ufffd")


@settings(max_examples=200, deadline=None)
@given(raw=st.lists(st.integers(0, 255), max_size=30))
@example(raw=[0x80] * 30)
@example(raw=[0xF0, 0x9F, 0x91])
@example(raw=[0xE4, 0x41, 0xF0, 0x80, 0xED, 0xA0, 0x80])
def test_byte_level_invalid_utf8_is_shown_as_the_decoder_shows_it(raw: list[int]) -> None:
    spelled = [token for token, _ in sorted(BYTE_LEVEL.get_vocab().items()) if len(token) == 1]
    ids = [BYTE_LEVEL.token_to_id(spelled[byte % len(spelled)]) for byte in raw]
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


def test_what_a_run_of_bytes_holds_back_counts_from_its_own_beginning() -> None:
    tokenizer = made.sentencepiece(strip=False)
    detokenizer = detokenizer_for(vocabulary_of(tokenizer))
    held = []
    for token in ("<0xE4>", "a", "<0xC3>", "<0xA9>", "<0xA9>"):  # the first run is cut short
        token_id = tokenizer.token_to_id(token)
        assert token_id is not None
        detokenizer.push(token_id)
        held.append(detokenizer.num_held)
    assert held == [0, 0, 0, 1, 2]


def test_an_emoji_is_held_until_its_last_byte() -> None:
    ids = BYTE_LEVEL.encode("🙂", add_special_tokens=False).ids
    assert len(ids) > 1
    got = pieces(BYTE_LEVEL, ids)
    assert got == [""] * (len(ids) - 1) + ["🙂", ""]


def test_invalid_bytes_are_let_go_as_soon_as_they_are_certain() -> None:
    continuation = next(
        id_ for id_ in range(BYTE_LEVEL.get_vocab_size()) if BYTE_LEVEL.decode([id_]) == "\ufffd"
    )
    detokenizer = detokenizer_for(vocabulary_of(BYTE_LEVEL))
    emitted = sum(len(detokenizer.push(continuation)) for _ in range(5000))
    assert emitted >= 4990


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_fresh_detokenizer_resumes_where_another_stopped(kind: str, data: st.DataObject) -> None:
    tokenizer, _ = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    cut = data.draw(st.integers(0, len(ids)))
    first = detokenizer_for(vocabulary_of(tokenizer))
    sent = "".join(first.push(token) for token in ids[:cut])
    second = detokenizer_for(vocabulary_of(tokenizer))
    for token in ids[:cut]:
        second.push(token)
    rest = "".join(second.push(token) for token in ids[cut:]) + second.flush()
    assert sent + rest == tokenizer.decode(ids, skip_special_tokens=True)


def test_sentencepiece_keeps_inner_spaces_and_strips_only_the_first() -> None:
    tokenizer, _ = KINDS["sentencepiece_strip"]
    ids = [tokenizer.token_to_id(token) for token in ("▁hello", "▁", "▁wor", "ld")]
    assert pieces(tokenizer, ids) == ["hello", " ", " wor", "ld", ""]


def test_byte_fallback_run_is_one_unit() -> None:
    tokenizer, _ = KINDS["sentencepiece"]
    run = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    dot = tokenizer.token_to_id(".")
    assert pieces(tokenizer, [*run, dot]) == ["", "", "", "", "🙂.", ""]
    assert pieces(tokenizer, [*run, run[0], dot])[-2] == "\ufffd" * 5 + "."


def test_token_text_shows_one_token_alone() -> None:
    strip = vocabulary_of(KINDS["sentencepiece_strip"][0])
    tokenizer = KINDS["sentencepiece_strip"][0]
    assert strip.token_text(tokenizer.token_to_id("▁hello")) == " hello"
    assert strip.token_text(tokenizer.token_to_id("<0xF0>")) == "\ufffd"
    assert strip.token_text(tokenizer.token_to_id("<0x41>")) == "A"
    assert strip.token_text(0) == "<s>"
    assert strip.token_text(10**6) == ""
    byte_level = vocabulary_of(BYTE_LEVEL)
    for id_ in range(3, BYTE_LEVEL.get_vocab_size()):
        assert byte_level.token_text(id_) == BYTE_LEVEL.decode([id_])


def test_emission_depends_on_tokens_only() -> None:
    ids = BYTE_LEVEL.encode(UNICODE, add_special_tokens=False).ids
    prefixes = ["".join(pieces(BYTE_LEVEL, ids[:n])[:-1]) for n in range(len(ids) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(prefixes))
