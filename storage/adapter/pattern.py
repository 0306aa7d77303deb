"""Regular expressions from strangers, matched in bounded time.

Python's `re` backtracks, so `(a+)+b` in a config could hold a core for ever. Here a pattern becomes
a small program and each (instruction, position) pair is visited at most once, which bounds a match
by program size times name length (the scheme of RE2's bit-state matcher). A `Budget` bounds the sum
over all the names of a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from storage.adapter.pattern_syntax import (
    Anchor,
    Char,
    Choice,
    Look,
    Node,
    PatternSyntaxError,
    Repeat,
    Sequence,
    Test,
    is_word,
    parse_pattern,
)

_MAX_CHARS = 2048
_MAX_PROGRAM = 4000
# Without quantifiers or choices Python's matcher has nothing to backtrack over.
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_.]|\\\.)+\$?")
_MAX_EMITS = 20_000


@dataclass(slots=True)
class Budget:
    """Steps left to all matches that share it. Raises PatternSyntaxError through `spend`."""

    steps: int = 1_000_000

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise PatternSyntaxError("takes too long to match against the base model's modules")


@dataclass(slots=True)
class _Step:
    """`kind`: char (test, then next), split (next and other), anchor, look, or match."""

    kind: str
    next: int = -1
    other: int = -1
    test: Test | None = None
    anchor: str = ""
    negated: bool = False


class Pattern:
    """One compiled pattern. Immutable, safe to share between threads."""

    def __init__(self, text: str, *, dotted_suffix: bool = False) -> None:
        """dotted_suffix: match what follows any dot of the name too, as rank_pattern keys do.

        Raises: PatternSyntaxError.
        """
        if len(text) > _MAX_CHARS:
            raise PatternSyntaxError(f"longer than {_MAX_CHARS} characters")
        whole = rf"(.*\.)?({text})$" if dotted_suffix else text
        self._plain: re.Pattern[str] | None = None
        self._program: list[_Step] = []
        self._start = 0
        self._emits = 0
        if _PLAIN.fullmatch(text):
            self._plain = re.compile(whole)
        else:
            self._start = self._emit(parse_pattern(whole), self._add(_Step("match")))

    @property
    def is_costly(self) -> bool:
        """Whether matching runs the program rather than a plain comparison."""
        return self._plain is None

    def fullmatch(self, name: str, budget: Budget) -> bool:
        """Whether the whole of `name` matches, as `re.fullmatch` would say."""
        if self._plain is not None:
            budget.spend(1)
            return self._plain.fullmatch(name) is not None
        return _Match(self._program, name, budget).run(self._start, whole=True)

    def _add(self, step: _Step) -> int:
        if len(self._program) >= _MAX_PROGRAM:
            raise PatternSyntaxError("too complex")
        self._program.append(step)
        return len(self._program) - 1

    def _emit(self, node: Node, after: int) -> int:
        """Add `node` so that it continues at `after`; returns where it begins."""
        self._emits += 1
        if self._emits > _MAX_EMITS:  # repeated empty groups add no instruction
            raise PatternSyntaxError("too complex")
        match node:
            case Char(test):
                return self._add(_Step("char", next=after, test=test))
            case Anchor(kind):
                return self._add(_Step("anchor", next=after, anchor=kind))
            case Sequence(items):
                for item in reversed(items):
                    after = self._emit(item, after)
                return after
            case Choice(options):
                entry = self._emit(options[-1], after)
                for option in reversed(options[:-1]):
                    entry = self._add(_Step("split", next=self._emit(option, after), other=entry))
                return entry
            case Look(item, negated):
                inner = self._emit(item, self._add(_Step("match")))
                return self._add(_Step("look", next=after, other=inner, negated=negated))
            case Repeat(item, low, high):
                return self._emit_repeat(item, low, high, after)

    def _emit_repeat(self, item: Node, low: int, high: int | None, after: int) -> int:
        if high is None:
            loop = self._add(_Step("split", other=after))
            self._program[loop].next = self._emit(item, loop)
            entry = loop
        else:
            entry = after
            for _ in range(high - low):
                entry = self._add(_Step("split", next=self._emit(item, entry), other=after))
        for _ in range(low):
            entry = self._emit(item, entry)
        return entry


class _Match:
    def __init__(self, program: list[_Step], name: str, budget: Budget) -> None:
        self.program = program
        self.name = name
        self.budget = budget
        self.looks: dict[tuple[int, int], bool] = {}

    def run(self, start: int, *, whole: bool, position: int = 0) -> bool:
        name, program = self.name, self.program
        end = len(name)
        seen: set[tuple[int, int]] = set()
        stack = [(start, position)]
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            self.budget.spend(1)
            pc, at = state
            step = program[pc]
            if step.kind == "char":
                if at < end and step.test is not None and step.test(name[at]):
                    stack.append((step.next, at + 1))
            elif step.kind == "split":
                stack.append((step.other, at))
                stack.append((step.next, at))
            elif step.kind == "match":
                if at == end or not whole:
                    return True
            elif step.kind == "anchor":
                if self._holds(step.anchor, at):
                    stack.append((step.next, at))
            elif self._looking(step.other, at) != step.negated:
                stack.append((step.next, at))
        return False

    def _looking(self, start: int, at: int) -> bool:
        if (start, at) not in self.looks:
            self.looks[start, at] = self.run(start, whole=False, position=at)
        return self.looks[start, at]

    def _holds(self, anchor: str, at: int) -> bool:
        name, end = self.name, len(self.name)
        if anchor in ("^", "\\A"):
            return at == 0
        if anchor == "\\Z":
            return at == end
        if anchor == "$":
            return at == end or (at == end - 1 and name[at] == "\n")
        before = at > 0 and is_word(name[at - 1])
        behind = at < end and is_word(name[at])
        return (before != behind) == (anchor == "\\b")


@lru_cache(maxsize=512)
def compile_pattern(text: str, *, dotted_suffix: bool = False) -> Pattern:
    """Raises: PatternSyntaxError."""
    return Pattern(text, dotted_suffix=dotted_suffix)
