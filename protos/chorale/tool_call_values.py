"""Values of arguments that are written as plain text, told from JSON by the function's schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from chorale.tool_call_object import read_json

TEXT = frozenset({"string"})
_MAX_STEPS = 64
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
# That limit no value.
_NOTES = frozenset(
    {
        *("title", "description", "default", "example", "examples", "deprecated", "discriminator"),
        *("readOnly", "writeOnly", "$comment", "$schema", "$id", "id", "$defs", "definitions"),
    }
)
_LEAD_ON = frozenset({"$ref", "anyOf", "oneOf"})
_PYTHON = {"True": "true", "False": "false", "None": "null"}  # as chat templates write them


def kinds_of(parameters: object, name: str) -> frozenset[str]:
    """JSON's types that the value of an argument may have; empty where the schema does not tell.

    parameters: the function's schema, which nobody has checked.
    """
    kinds: set[str] = set()
    for each in alternatives(parameters, name):
        told = kinds_of_one(each)
        if not told:
            return frozenset()
        kinds |= told
    return frozenset(kinds)


def alternatives(parameters: object, name: str) -> list[Mapping[str, Any]]:
    """Of the schema of an argument, with references followed, and what stands beside these; empty
    where they are too many, contradict that, or what should be a schema is none."""
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(parameters, Mapping) or not isinstance(properties, Mapping):
        return []
    found: list[Mapping[str, Any]] = []
    waiting: list[tuple[object, Mapping[str, Any]]] = [(properties.get(name), {})]
    for _ in range(_MAX_STEPS):
        if not waiting:
            return found
        schema, beside = waiting.pop(0)
        if not isinstance(schema, Mapping):
            return []
        if any(beside[each] != schema[each] for each in beside.keys() & schema.keys()):
            return []
        schema = {**beside, **schema}
        beside = {each: schema[each] for each in schema.keys() - _LEAD_ON - _NOTES}
        several = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(schema.get("$ref"), str):
            waiting.append((_referred(schema["$ref"], parameters), beside))
        elif isinstance(several, list) and "type" not in schema:
            waiting += [(each, beside) for each in several]
        else:
            found.append(schema)
    return []


def kinds_of_one(schema: Mapping[str, Any]) -> set[str]:
    """Of an alternative. Empty: it does not tell."""
    if (values := listed(schema)) is not None:
        return {_type_of(each) for each in values}
    said = schema.get("type")
    if isinstance(said, str):
        return {said}
    return {each for each in said if isinstance(each, str)} if isinstance(said, list) else set()


def listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """All values that an alternative has, where it lists them."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    """Within the same schema, by the names that its definitions have (a JSON pointer, RFC 6901)."""
    at: object = root
    for part in reference.removeprefix("#/").split("/", _MAX_STEPS):
        name = part.replace("~1", "/").replace("~0", "~")
        at = at.get(name) if isinstance(at, Mapping) else None
    return at


def _type_of(value: object) -> str:
    return _TYPES.get(type(value), "array" if isinstance(value, list) else "object")


def as_json(text: str, kinds: Collection[str]) -> str:
    """The value as JSON: what is of none of `kinds` is a text."""
    if kinds == TEXT:
        return quoted(text)
    bare = text.strip()
    if kinds and not {"boolean", "null"}.isdisjoint(kinds):
        bare = _PYTHON.get(bare, bare)
    value = read_json(bare)
    if value is None and bare != "null":
        return quoted(text)
    kind = _type_of(value)
    fits = kind in kinds or (kind == "integer" and "number" in kinds)
    if isinstance(value, float) and value.is_integer():
        fits |= "integer" in kinds
    return bare if fits or (not kinds and kind != "string") else quoted(text)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
