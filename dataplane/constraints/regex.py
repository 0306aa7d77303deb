"""How large a regular expression is, before anybody builds an automaton of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dataplane.constraints.limits import MAX_DEPTH, MAX_REGEX_BYTES, MAX_REGEX_PARTS
from dataplane.constraints.refusal import too_complex

# An escaped character, a class in brackets, a repetition, or a parenthesis. A class that nobody
# closes takes all that follows: looking for its end again from each bracket in it takes seconds.
_PART = re.compile(
    r"\\(?:.|$)|\[\^?+\]?+(?:\\.|\[:\^?\w++:\]|[^\]\\])*+(?:\]|\\?$)|\{(\d+)(?:,(\d*))?\}|[()]",
    re.DOTALL,
)


def check_regex(field: str, text: str) -> None:
    """field: of the constraint that it is in. Whether it is one at all is for others to say.

    Raises: InvalidArgumentError when it is too long, too deep, or repeats too much.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_REGEX_BYTES:
        raise too_complex(
            field, f"has a regular expression of {size} bytes, more than {MAX_REGEX_BYTES}"
        )
    # For each open parenthesis and what is outside of all: how many characters and classes there
    # are, repetitions written out, and how many of these are the last part's.
    open_parts = [[0, 0]]
    for token, count in _tokens(text):
        part = open_parts[-1]
        if token == "(":
            open_parts.append([0, 0])
        elif token == ")" and len(open_parts) > 1:
            inside = max(1, open_parts.pop()[0])
            open_parts[-1][0] += inside
            open_parts[-1][1] = inside
        elif token == "{":
            part[0] += part[1] * (count - 1)
            part[1] *= count
        else:
            part[0] += count
            part[1] = 1
        if len(open_parts) > MAX_DEPTH:
            raise too_complex(field, f"has a regular expression of more than {MAX_DEPTH} levels")
        if open_parts[-1][0] > MAX_REGEX_PARTS:
            raise too_complex(
                field,
                "has a regular expression that, with its repetitions written out, has more than"
                f" {MAX_REGEX_PARTS} parts",
            )


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Parentheses, ("{", times) for repetitions, and ("", count) for what they may stand behind."""
    end = 0
    for found in _PART.finditer(text):
        yield from _plain(text[end : found.start()])
        end = found.end()
        if found[0] in "()":
            yield found[0], 0
        elif found[1] is not None:
            yield "{", max(1, _number(found[1]), _number(found[2] or "0"))
        else:
            yield "", 1
    yield from _plain(text[end:])


def _plain(text: str) -> Iterator[tuple[str, int]]:
    """What stands between; `*`, `+` and `?` belong to the part before them."""
    count = sum(character not in "*+?" for character in text)
    if count:
        yield "", count


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 9 else 10**9  # above any bound; long ones are slow to read
