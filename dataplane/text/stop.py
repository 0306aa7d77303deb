"""Stop strings over a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.text.borders import borders


class StopStrings:
    """Finds the first stop string to be completed, and holds back what may still become one.

    The text is read character by character, so neither the borders of tokens nor those of pieces
    change what is found: the match that ends first wins, and of those that end together the one
    that began first. Costs one comparison (amortised) per character and stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Returns the text that is now certain, and the stop string that was met, if any.

        A match counts only when it ends in `text` and `armed` is true; what began in earlier,
        unarmed text may end here. After a match the object is used up.
        """
        if not self._patterns:
            return text, None
        buffer = self._held + text
        start = len(self._held)
        for end, character in enumerate(text, start + 1):
            met: _Pattern | None = None
            for pattern in self._patterns:
                whole = pattern.advance(character)
                if whole and armed and (met is None or len(pattern.text) > len(met.text)):
                    met = pattern
            if met is not None:
                self._held = ""
                return buffer[: end - len(met.text)], met.text
        certain = len(buffer) - max(pattern.matched for pattern in self._patterns)
        self._held = buffer[certain:]
        return buffer[:certain], None

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """Knuth-Morris-Pratt matching of one string; `matched` characters of it end the text so far."""

    def __init__(self, text: str) -> None:
        assert text, "an empty stop string matches everywhere"
        self.text = text
        self.matched = 0
        self._borders = borders(text)

    def advance(self, character: str) -> bool:
        """Reads one character; true when the whole string ends with it."""
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._borders[matched - 1]
        if self.text[matched] == character:
            matched += 1
        if matched == len(self.text):
            self.matched = self._borders[-1]
            return True
        self.matched = matched
        return False
