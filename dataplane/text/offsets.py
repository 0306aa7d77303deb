"""Where in a text each of its tokens begins."""

from __future__ import annotations


class TextOffsets:
    """Of one text, from its first token.

    Counted by the text that its tokens make together: parts of one character begin where it does,
    and a token that is no part of the text where the next one does.
    """

    def __init__(self) -> None:
        self._length = 0

    def next(self, token_text: str, certain: str) -> int:
        """Characters before the next token. token_text: it alone. certain: what it made certain of
        the text, of tokens before it as well, as a Detokenizer's push says."""
        begin = self._length
        self._length += len(certain)
        return max(begin, self._length - len(token_text)) if certain else begin
