"""Where in a text each of its tokens begins."""

from __future__ import annotations


class TextOffsets:
    """Of one text, from its first token.

    Counted by the text that its tokens make together: parts of one character begin where it does,
    and a token that is no part of the text where the next one does.
    """

    def __init__(self) -> None:
        self._num_certain = 0
        self._end = 0

    def next(self, token_text: str, certain: str, num_held: int) -> int:
        """Characters before the next token. token_text: it alone. certain, num_held: what it made
        certain of the text, of tokens before it as well, and what is held back after it, as a
        Detokenizer says."""
        begin = self._end
        self._num_certain += len(certain)
        self._end = max(begin, self._num_certain + num_held)
        return max(begin, self._end - len(token_text)) if self._end > begin else begin
