"""How many characters of a prompt make a token here, measured."""

from __future__ import annotations

_KEEP = 0.99  # weight of the past at each prompt


class TextRatio:
    """What a chat template adds counts as tokens of the messages' characters."""

    def __init__(self) -> None:
        self._characters = self._tokens = 0.0

    def note(self, num_characters: int, num_tokens: int) -> None:
        """num_characters: 0 of a prompt that came as tokens, which tells nothing."""
        if not num_characters:
            return
        self._characters = _KEEP * self._characters + num_characters
        self._tokens = _KEEP * self._tokens + num_tokens

    @property
    def characters_per_token(self) -> float:
        """0 before the first text."""
        return self._characters / self._tokens if self._tokens else 0.0
