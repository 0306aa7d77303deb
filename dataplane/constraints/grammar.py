"""A constraint as a request has it, to a grammar as llguidance reads it."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from chorale.v1 import inference_pb2 as pb
from dataplane.constraints.json_schema import checked_schema
from dataplane.constraints.limits import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_INDENT,
    MAX_RULES,
    MAX_TEXT_BYTES,
)
from dataplane.constraints.refusal import refused, too_complex
from dataplane.constraints.regex import check_regex

# One space, or a new line with its indentation.
SPACES = rf"\x20|\x0A\x20{{0,{MAX_INDENT}}}|\x0A\x09{{1,{MAX_INDENT}}}"
_OF_REGEX = re.compile(r"[\\.+*?()|\[\]{}^$/]")
# Expressions over a caller's text do not go back over what they took (`*+`, `++`): else a few bytes
# keep whoever reads them busy for hours.
_RULE = re.compile(r"^[ \t]*+[\w?!.]++\s*+(?:\[[^\]\[]*+\]\s*+)?:", re.MULTILINE)
_TEMPERATURE = re.compile(r"\btemperature\s*+=")
_LARK_REPETITION = re.compile(r"[{~]\s*(\d+)(?:\s*(?:,|\.\.)\s*(\d+))?")
_MAX_LARK_REPETITION = 10_000
# Comments, strings and regular expressions, as llguidance cuts them. What has no end goes on to the
# end of the line or of all, and is refused there.
_LITERAL = re.compile(r'(?://|\#)[^\n]*+|"(?:\\.|[^"\\\n])*+"?|/((?:\\.|[^/\\])++)/?', re.DOTALL)


class Grammar(NamedTuple):
    """kind: the constraint's field. text: as llguidance reads it."""

    kind: str
    text: str


def grammar_of(constraint: pb.Constraint) -> Grammar:
    """Raises: InvalidArgumentError for what is malformed, too large, or cannot be enforced."""
    match constraint.WhichOneof("kind"):
        case "json_schema":
            schema = checked_schema(_bounded("json_schema", constraint.json_schema))
            return Grammar("json_schema", _of_schema(schema))
        case "json_object":
            if not constraint.json_object:
                raise refused("json_object", "is false; leave it out, or set it")
            return Grammar("json_object", _of_schema({"type": "object"}))
        case "regex":
            text = _bounded("regex", constraint.regex)
            check_regex("regex", text)
            return Grammar("regex", of_lark(f"start: {_lark_regex(text)}"))
        case "choices":
            return Grammar("choices", _choices(constraint.choices))
        case "grammar":
            return Grammar("grammar", _lark(_bounded("grammar", constraint.grammar)))
        case _:
            raise refused("", "names no kind; set one, or leave the constraint out")


def _bounded(field: str, text: str) -> str:
    size = len(text.encode())
    if size > MAX_TEXT_BYTES:
        raise too_complex(field, f"has {size} bytes; at most {MAX_TEXT_BYTES} go")
    if not text.strip():
        raise refused(field, "is empty; leave it out")
    return text


def _of_schema(schema: object) -> str:
    # llguidance takes its options from the schema itself, where nobody else may set them.
    fields = schema if isinstance(schema, dict) else {"allOf": [schema]}
    options = {"whitespace_pattern": SPACES}
    return json.dumps({"grammars": [{"json_schema": {**fields, "x-guidance": options}}]})


def of_lark(text: str) -> str:
    """For llguidance: wrapped, as what begins with a brace would be read as another kind."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _lark_regex(text: str) -> str:
    """Between slashes, in one line. A line's end behind a backslash stands for itself."""

    def escaped(found: re.Match[str]) -> str:
        last = found[0][-1]
        if last == "/" or ord(last) in _LINE_ENDS:
            return _LINE_ENDS.get(ord(last), "\\/")
        return found[0]

    shown = re.sub(r"\\.|/", escaped, text, flags=re.DOTALL)
    return f"/{shown.translate(_LINE_ENDS)}/"


_LINE_ENDS = {ord("\n"): "\\n", ord("\r"): "\\r"}


def _choices(choices: pb.Choices) -> str:
    texts = list(choices.texts)
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise refused("choices", f"has {len(texts)} texts; 1 to {MAX_CHOICES} go")
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_TEXT_BYTES:
        raise too_complex("choices", f"has {size} bytes; at most {MAX_TEXT_BYTES} go")
    if "" in texts:
        raise refused(f"choices.texts[{texts.index('')}]", "is empty; leave it out")
    escaped = (_OF_REGEX.sub(r"\\\g<0>", text).translate(_LINE_ENDS) for text in texts)
    return of_lark(f"start: /{'|'.join(escaped)}/")


def _lark(text: str) -> str:
    bare = _LITERAL.sub(" ", text)
    if "%json" in bare:
        raise refused("grammar", "uses %json; send the schema as json_schema instead")
    if _TEMPERATURE.search(bare):
        raise refused("grammar", "sets a temperature; set that of the request instead")
    num_rules = len(_RULE.findall(bare))
    if num_rules > MAX_RULES:
        raise too_complex("grammar", f"has {num_rules} rules; at most {MAX_RULES} go")
    depth = deepest = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise too_complex("grammar", f"has brackets of more than {MAX_DEPTH} levels")
    for numbers in _LARK_REPETITION.findall(bare):
        if any(len(each) > 9 or int(each or 0) > _MAX_LARK_REPETITION for each in numbers):
            raise too_complex("grammar", f"repeats a part more than {_MAX_LARK_REPETITION} times")
    for literal in _LITERAL.finditer(text):
        if literal[1] is not None:
            check_regex("grammar", literal[1])
    return of_lark(text)
