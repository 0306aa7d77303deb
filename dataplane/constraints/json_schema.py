"""Which JSON schemas can be enforced exactly.

llguidance passes over keywords that it does not know, so every keyword must be one that it enforces
or one that asks for nothing, wherever a `$ref` may lead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, cast

from dataplane.constraints.limits import MAX_DEPTH, MAX_RULES
from dataplane.constraints.refusal import refused, too_complex
from dataplane.constraints.regex import check_regex

_MAX_QUOTED = 80
_MAX_REFERENCES = MAX_RULES  # which are followed on the stack

# With the form of their value: one schema, a list of them, or schemas by name.
_ONE = frozenset({"additionalProperties", "items"})
_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_ENFORCED = frozenset(
    {
        "$ref",
        "const",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "required",
        "type",
    }
)
# OpenAPI's discriminator tells which of `oneOf` is meant, which decides by itself.
_SAYS_NOTHING = frozenset(
    {
        "$comment",
        "$schema",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_AT_ROOT = frozenset({"$id", "id"})  # elsewhere it changes what references mean

_Path = tuple[str, ...]


def checked_schema(text: str, field: str = "json_schema") -> object:
    """The schema. field: that has it, as refusals name it.

    Raises: InvalidArgumentError.
    """
    try:
        root: object = json.loads(text, parse_constant=_no_number, parse_float=_number)
    except RecursionError:
        raise too_complex(field, f"is more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise refused(field, f"is not valid JSON: {str(error)[:200]}; send a schema") from None
    check_depth(root, field)
    paths: set[_Path] = set()
    references: list[tuple[_Path, str]] = []
    for path, schema in _schemas(root, field):
        paths.add(path)
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict):
            raise refused(field, f"has {_quoted(schema)} at {_shown(path)}, which is no schema")
        fields = cast("dict[str, Any]", schema)
        _check_keywords(path, fields, field)
        if "$ref" in fields:
            references.append((path, _text(path, "$ref", fields["$ref"], field)))
    if len(references) > _MAX_REFERENCES:
        raise too_complex(field, f"has {len(references)} of $ref, more than {_MAX_REFERENCES}")
    for path, reference in references:
        if _target(reference) not in paths:
            raise refused(
                field,
                f"has $ref {_quoted(reference)} at {_shown(path)}: references go to a schema"
                ' within this one, as "#/$defs/NAME"',
            )
    _check_loops(dict(references), field)
    return root


def _schemas(root: object, field: str) -> Iterator[tuple[_Path, object]]:
    """All schemas in it, with the keys that lead there."""
    waiting: list[tuple[_Path, object]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        yield path, schema
        if not isinstance(schema, dict):
            continue
        for keyword, value in cast("dict[str, Any]", schema).items():
            here = (*path, keyword)
            if keyword in _ONE:
                waiting.append((here, value))
            elif keyword in _LIST:
                if not isinstance(value, list):
                    raise refused(field, f"has {_shown(here)}, which must be a list of schemas")
                parts = cast("list[object]", value)
                waiting += [((*here, str(at)), part) for at, part in enumerate(parts)]
            elif keyword in _NAMED:
                if not isinstance(value, dict):
                    raise refused(field, f"has {_shown(here)}, which must be an object of schemas")
                waiting += [
                    ((*here, name), part) for name, part in cast("dict[str, object]", value).items()
                ]


def _check_loops(references: dict[_Path, str], field: str) -> None:
    """Raises: InvalidArgumentError for one that leads to itself over others alone."""
    ends: set[_Path] = set()  # those that lead to a schema that says something
    for path in references:
        passed: set[_Path] = set()
        at: _Path | None = path
        while at in references and at not in ends:
            if at in passed:
                raise refused(
                    field,
                    f"has $ref {_quoted(references[at])} at {_shown(at)}, which leads back to"
                    " itself, so that it says nothing: let it go to a schema that does",
                )
            passed.add(at)
            at = _target(references[at])
        ends |= passed


def _check_keywords(path: _Path, schema: dict[str, Any], field: str) -> None:
    for keyword in schema:
        known = keyword in _ONE | _LIST | _NAMED | _ENFORCED | _SAYS_NOTHING
        if not known and not (keyword in _AT_ROOT and not path):
            raise refused(
                field,
                f"has the keyword {_quoted(keyword)} at {_shown(path)}, which cannot be enforced;"
                " leave it out",
            )
    if "pattern" in schema:
        check_regex(field, _text(path, "pattern", schema["pattern"], field))
    for pattern in cast("dict[str, Any]", schema.get("patternProperties", {})):
        check_regex(field, pattern)


def check_depth(root: object, field: str) -> None:
    """Raises: InvalidArgumentError for a value that is too deep."""
    level: list[object] = [root]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                below += cast("dict[str, object]", each).values()
            elif isinstance(each, list):
                below += cast("list[object]", each)
        if not below:
            return
        level = below
    raise too_complex(field, f"is more than {MAX_DEPTH} levels deep")


def _target(reference: str) -> _Path | None:
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        return None
    parts = reference[2:].split("/")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def _text(path: _Path, keyword: str, value: object, field: str) -> str:
    if isinstance(value, str):
        return value
    raise refused(field, f"has {keyword} {_quoted(value)} at {_shown(path)}; it must be a text")


def _number(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:_MAX_QUOTED])


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _quoted(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _shown(path: _Path) -> str:
    text = "/".join(("#", *path))
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
