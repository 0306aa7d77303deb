"""What each token id contributes to a text, by the kind of the tokenizer's decoder."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import tokenizers


class Vocabulary:
    """A tokenizer's ids and decoder. Ids that it does not know contribute nothing.

    shown: special tokens that are text like any other.
    """

    def __init__(self, backend: tokenizers.Tokenizer, shown: Collection[str] = ()) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        special = {id_: token.content for id_, token in added.items() if token.special}
        self._special_ids = frozenset(id_ for id_, text in special.items() if text not in shown)
        self._shows_special = len(self._special_ids) < len(special)
        self._texts: dict[int, str] = {}

    def is_visible(self, token_id: int) -> bool:
        """False for special tokens and unknown ids, which no text shows."""
        return token_id not in self._special_ids and self._backend.id_to_token(token_id) is not None

    def decode(self, token_ids: Sequence[int]) -> str:
        """All tokens at once, special tokens left out; incomplete UTF-8 becomes U+FFFD."""
        if self._shows_special:
            visible = [token_id for token_id in token_ids if token_id not in self._special_ids]
            return self._backend.decode(visible, skip_special_tokens=False)
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """The token alone, special or not; incomplete UTF-8 becomes U+FFFD."""
        text = self._texts.get(token_id)
        if text is None:
            if token_id in self._special_ids:
                text = self._backend.id_to_token(token_id) or ""
            else:
                text = self._alone(token_id)
            self._texts[token_id] = text
        return text

    def _alone(self, token_id: int) -> str:
        return self._backend.decode([token_id], skip_special_tokens=False)


class ByteLevelVocabulary(Vocabulary):
    """Tokens spell bytes in the printable alphabet of GPT-2's byte-level BPE."""

    def __init__(self, backend: tokenizers.Tokenizer, shown: Collection[str] = ()) -> None:
        super().__init__(backend, shown)
        self._pieces: dict[int, bytes] = {}

    def piece(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._backend.id_to_token(token_id) if self.is_visible(token_id) else None
            piece = self._pieces[token_id] = b"" if token is None else _bytes_of(token)
        return piece

    def _alone(self, token_id: int) -> str:
        return self.piece(token_id).decode(errors="replace")


class SentencePieceVocabulary(Vocabulary):
    """Tokens are text after some replacements, or single bytes as `<0x0A>`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        steps: list[dict[str, Any]],
        shown: Collection[str] = (),
    ) -> None:
        super().__init__(backend, shown)
        self._replacements = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace"
        ]
        strip = next((step for step in steps if step["type"] == "Strip"), None)
        self.strip_character: str = strip["content"] if strip else ""
        self.strip_count: int = strip["start"] if strip else 0
        self._pieces: dict[int, str | int | None] = {}

    def piece(self, token_id: int) -> str | int | None:
        """The token's text, its byte's value, or None when no text shows it."""
        if token_id not in self._pieces:
            token = self._backend.id_to_token(token_id) if self.is_visible(token_id) else None
            self._pieces[token_id] = None if token is None else self._piece_of(token)
        return self._pieces[token_id]

    def _piece_of(self, token: str) -> str | int:
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return int(token[3:5], 16)
            except ValueError:
                pass
        return token

    def _alone(self, token_id: int) -> str:
        piece = self.piece(token_id)
        if isinstance(piece, int):
            return bytes((piece,)).decode(errors="replace")
        return piece or ""


def vocabulary_of(backend: tokenizers.Tokenizer, shown: Collection[str] = ()) -> Vocabulary:
    """The vocabulary of the kind that the tokenizer's decoder asks for. shown: special tokens that
    are to be text."""
    decoder: Any = json.loads(backend.decoder.__getstate__()) if backend.decoder else None
    steps: list[dict[str, Any]] = []
    if decoder is not None:
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelVocabulary(backend, shown)
    if _is_sentencepiece(steps, kinds):
        return SentencePieceVocabulary(backend, steps, shown)
    return Vocabulary(backend, shown)


def _is_sentencepiece(steps: list[dict[str, Any]], kinds: list[str]) -> bool:
    """Replace of fixed strings, ByteFallback, Fuse, then at most one Strip of the beginning."""
    num_replacements = 0
    while num_replacements < len(kinds) and kinds[num_replacements] == "Replace":
        num_replacements += 1
    if any("String" not in step["pattern"] for step in steps[:num_replacements]):
        return False
    tail = kinds[num_replacements:]
    if tail == ["ByteFallback", "Fuse", "Strip"]:
        return steps[-1]["stop"] == 0
    return tail == ["ByteFallback", "Fuse"]


def _byte_alphabet() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the rest for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTES = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """Added tokens are plain text: one character outside the alphabet tells them apart."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()
