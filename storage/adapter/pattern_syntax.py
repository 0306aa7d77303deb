"""Parser for the regular expressions that adapter configs carry.

It reads the part of Python's syntax whose matching needs no backtracking: literals, classes,
groups, alternation, repetition, anchors, \\b and lookahead. Backreferences, lookbehind, inline
flags and possessive or atomic forms are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MAX_GROUP_DEPTH = 50
_MAX_REPEAT = 1000

Test = Callable[[str], bool]


class PatternSyntaxError(ValueError):
    """The pattern is malformed or outside the supported part; the text says which and where."""


@dataclass(frozen=True, slots=True)
class Char:
    test: Test


@dataclass(frozen=True, slots=True)
class Anchor:
    kind: str  # one of ^ $ \A \Z \b \B


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Look:
    item: Node
    negated: bool


Node = Char | Anchor | Sequence | Choice | Repeat | Look


def is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "D": lambda c: not c.isdecimal(),
    "w": is_word,
    "W": lambda c: not is_word(c),
    "s": str.isspace,
    "S": lambda c: not c.isspace(),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


def parse_pattern(text: str) -> Node:
    """Raises: PatternSyntaxError."""
    parser = _Parser(text)
    node = parser.choice(0)
    if parser.peek():
        raise parser.error("unbalanced parenthesis")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, problem: str) -> PatternSyntaxError:
        return PatternSyntaxError(f"{problem} at character {self.position}")

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.position):
            self.position += len(literal)
            return True
        return False

    def next(self) -> str:
        char = self.peek()
        if not char:
            raise self.error("unexpected end")
        self.position += 1
        return char

    def choice(self, depth: int) -> Node:
        if depth > _MAX_GROUP_DEPTH:
            raise self.error(f"groups nested deeper than {_MAX_GROUP_DEPTH}")
        options = [self.sequence(depth)]
        while self.take("|"):
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            items.append(self.repeated(self.atom(depth)))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def repeated(self, item: Node) -> Node:
        bounds = self.bounds()
        if bounds is None:
            return item
        if isinstance(item, Anchor):
            raise self.error("nothing to repeat")
        if self.take("+"):
            raise self.error("possessive quantifier is not supported")
        self.take("?")  # laziness does not change whether a whole name matches
        if self.peek() in ("*", "+", "?") or self.bounds() is not None:
            raise self.error("multiple repeat")
        return Repeat(item, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        if self.take("*"):
            return 0, None
        if self.take("+"):
            return 1, None
        if self.take("?"):
            return 0, 1
        if self.peek() != "{":
            return None
        end = self.text.find("}", self.position)
        body = self.text[self.position + 1 : end] if end >= 0 else ""
        low, comma, high = body.partition(",")
        digits = [part for part in (low, high) if part]
        if not body or not all(part.isascii() and part.isdigit() for part in digits):
            return None  # as in Python, a brace that is no quantifier is a literal
        if any(len(part) > 4 or int(part) > _MAX_REPEAT for part in digits):
            raise self.error(f"repetition beyond {_MAX_REPEAT}")
        self.position = end + 1
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise self.error("repetition bounds are reversed")
        return least, most

    def atom(self, depth: int) -> Node:
        char = self.next()
        if char == "(":
            return self.group(depth)
        if char == "[":
            return Char(self.bracket())
        if char == ".":
            return Char(lambda c: c != "\n")
        if char in ("^", "$"):
            return Anchor(char)
        if char in ("*", "+", "?"):
            raise self.error("nothing to repeat")
        if char == "{":
            self.position -= 1
            if self.bounds() is not None:
                raise self.error("nothing to repeat")
            self.position += 1
        if char == "\\":
            return self.escape()
        return Char(char.__eq__)

    def group(self, depth: int) -> Node:
        look: bool | None = None
        if self.take("?"):
            if self.take("="):
                look = False
            elif self.take("!"):
                look = True
            elif self.take("P<"):
                end = self.text.find(">", self.position)
                if end < 0 or not self.text[self.position : end].isidentifier():
                    raise self.error("bad group name")
                self.position = end + 1
            elif not self.take(":"):
                raise self.error("unsupported group form")
        item = self.choice(depth + 1)
        if not self.take(")"):
            raise self.error("missing )")
        # Wrapped: a bare anchor cannot be repeated, a group that holds one can.
        return Sequence((item,)) if look is None else Look(item, look)

    def escape(self) -> Node:
        char = self.next()
        if char in _CLASSES:
            return Char(_CLASSES[char])
        if char in ("A", "Z", "b", "B"):
            return Anchor("\\" + char)
        return Char(self.literal_escape(char).__eq__)

    def literal_escape(self, char: str) -> str:
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char.isascii() and char.isalnum():
            raise self.error(f"escape \\{char} is not supported")
        return char

    def bracket(self) -> Test:
        negated = self.take("^")
        tests: list[Test] = []
        first = True
        while first or self.peek() != "]":
            first = False
            low = self.bracket_item()
            if self.peek() == "-" and self.text[self.position + 1 : self.position + 2] != "]":
                self.position += 1
                high = self.bracket_item()
                if not isinstance(low, str) or not isinstance(high, str) or low > high:
                    raise self.error("bad character range")
                tests.append(_between(low, high))
            else:
                tests.append(low.__eq__ if isinstance(low, str) else low)
        self.position += 1
        if negated:
            return lambda c: not any(test(c) for test in tests)
        return lambda c: any(test(c) for test in tests)

    def bracket_item(self) -> str | Test:
        char = self.next()
        if char != "\\":
            return char
        char = self.next()
        if char == "b":
            return "\b"
        return _CLASSES[char] if char in _CLASSES else self.literal_escape(char)


def _between(low: str, high: str) -> Test:
    return lambda c: low <= c <= high
