"""Tokens to text, one token at a time, without ever splitting a character.

All detokenizers keep one promise: the pieces that `push` and the last `flush` return, joined, are
exactly what the tokenizer's decoder makes of all the tokens at once with special tokens left out.
What a push returns depends on the tokens so far only, never on how they were grouped, so feeding
the tokens of an interrupted stream brings a new detokenizer to the very same state.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from dataplane.text.vocabulary import ByteLevelVocabulary, SentencePieceVocabulary, Vocabulary

_REPLACEMENT = "\ufffd"
_MAX_PENDING_TOKENS = 8  # no decoder spreads one character over more


class Detokenizer(Protocol):
    num_held: int
    """Whole characters that are held back: what follows them may make them others."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        ...

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        ...


def detokenizer_for(vocabulary: Vocabulary) -> Detokenizer:
    """A fresh detokenizer at the beginning of a text."""
    if isinstance(vocabulary, ByteLevelVocabulary):
        return ByteLevelDetokenizer(vocabulary)
    if isinstance(vocabulary, SentencePieceVocabulary):
        return SentencePieceDetokenizer(vocabulary)
    return WindowDetokenizer(vocabulary)


class ByteLevelDetokenizer:
    """For byte-level BPE: every token is a run of bytes of the UTF-8 text."""

    num_held = 0

    def __init__(self, vocabulary: ByteLevelVocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._vocabulary.piece(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class SentencePieceDetokenizer:
    """For SentencePiece vocabularies: tokens are text, but for runs of byte tokens.

    A run of byte tokens is one unit for the decoder: valid UTF-8 as a whole, or U+FFFD for each of
    its bytes. So its text is certain only when the run has ended.
    """

    def __init__(self, vocabulary: SentencePieceVocabulary) -> None:
        self._vocabulary = vocabulary
        self._run = bytearray()
        self._whole = codecs.getincrementaldecoder("utf-8")("replace")
        self.num_held = 0
        self._num_to_strip = vocabulary.strip_count

    def push(self, token_id: int) -> str:
        piece = self._vocabulary.piece(token_id)
        if piece is None:
            return ""
        if isinstance(piece, int):
            self._run.append(piece)
            self.num_held += len(self._whole.decode(bytes((piece,))))
            return ""
        return self._strip(self._end_run() + piece)

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        if not self._run:
            return ""
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = _REPLACEMENT * len(self._run)
        self._run.clear()
        self._whole.reset()
        self.num_held = 0
        return text

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text:
            if text[0] != self._vocabulary.strip_character:
                self._num_to_strip = 0
                break
            text = text[1:]
            self._num_to_strip -= 1
        return text


class WindowDetokenizer:
    """For every other decoder: decodes a short window of tokens and returns what is new in it.

    Exact where a token's text depends on no more than its being the first one and on the token
    before it, which holds for the decoders of WordPiece, Metaspace and word-level vocabularies.
    """

    num_held = 0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._context: Sequence[int] = ()
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if not self._vocabulary.is_visible(token_id):
            return ""
        self._pending.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_PENDING_TOKENS:
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        text = self._new_text()
        self._context, self._pending = self._pending, []
        return text

    def _new_text(self) -> str:
        if not self._pending:
            return ""
        before = self._vocabulary.decode(self._context)
        return self._vocabulary.decode([*self._context, *self._pending])[len(before) :]
