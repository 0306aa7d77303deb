"""Which modules a list of names or regular expressions means.

The lists are strangers': expressions are matched in bounded time (storage.adapter.pattern).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from dataplane.errors import UnsupportedModelError
from dataplane.models.fields import unsupported
from storage.adapter.pattern import Budget, Pattern
from storage.adapter.pattern_syntax import PatternSyntaxError

_PLAIN = re.compile(r"[A-Za-z0-9_.\-]*")
_MAX_PATTERNS = 256
_MAX_STEPS = 5_000_000
_EXPRESSION = "re:"


class Matcher:
    """Matches modules' names; all matches of one have a bound together.

    Raises: UnsupportedModelError, its methods, for an expression that is not understood, or takes
    too long; the field is named.
    """

    def __init__(self) -> None:
        self._budget = Budget(_MAX_STEPS)

    def begins(self, field: str, expression: str, name: str) -> bool:
        """As `re.match`."""
        try:
            return _pattern(f"(?:{expression}).*").fullmatch(name, self._budget)
        except PatternSyntaxError as error:
            raise _refused(field, expression, error) from None

    def is_named(self, field: str, names: Iterable[str], name: str) -> bool:
        """By its whole name, or by an expression after `re:`, as in compressed-tensors."""
        for each in names:
            if each.startswith(_EXPRESSION):
                if self.begins(field, each.removeprefix(_EXPRESSION), name):
                    return True
            elif each == name:
                return True
        return False

    def is_skipped(self, field: str, names: Iterable[str], name: str) -> bool:
        """As transformers does: the name begins with one of them, up to a dot, or ends with it."""
        for each in names:
            if name.endswith(each):
                return True
            if _PLAIN.fullmatch(each):
                if name == each or name.startswith(f"{each.removesuffix('.')}."):
                    return True
            elif self.begins(field, rf"(?:{each})(?:\.|$)", name):
                return True
        return False

    def may_be_skipped(self, names: Iterable[str], name: str) -> bool:
        """As other programs do, AutoAWQ and earlier transformers: the name has it somewhere."""
        return any(each in name for each in names)


def check_expressions(field: str, names: Iterable[str], *, prefixed: bool) -> None:
    """prefixed: expressions are after `re:`, else they are what is no plain name.

    Raises: UnsupportedModelError.
    """
    if prefixed:
        found = [each.removeprefix(_EXPRESSION) for each in names if each.startswith(_EXPRESSION)]
    else:
        found = [each for each in names if not _PLAIN.fullmatch(each)]
    if len(found) > _MAX_PATTERNS:
        raise unsupported(
            field,
            f"a list with {len(found)} regular expressions",
            f"at most {_MAX_PATTERNS}, and any number of plain names",
        )
    for each in found:
        try:
            _pattern(f"(?:{each}).*")
        except PatternSyntaxError as error:
            raise _refused(field, each, error) from None


@lru_cache(maxsize=1024)
def _pattern(text: str) -> Pattern:
    return Pattern(text)


def _refused(field: str, expression: str, error: PatternSyntaxError) -> UnsupportedModelError:
    return unsupported(field, expression, f"plain names, or expressions that are bounded: {error}")
