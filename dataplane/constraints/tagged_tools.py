"""Arguments in tags, as llguidance reads it: texts as they stand, other values as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chorale.tool_call_values import alternatives, as_json, kinds_of, kinds_of_one, listed
from dataplane.constraints.grammar import SPACES
from dataplane.constraints.refusal import refused

_DEFINITIONS = ("$defs", "definitions")
_TO_DEFINITIONS = tuple(f"#/{each}/" for each in _DEFINITIONS)
# That say more of a text than that it is one.
_OF_TEXTS = frozenset({"allOf", "anyOf", "format", "maxLength", "minLength", "oneOf", "pattern"})
_OF_OBJECTS = ("maxProperties", "minProperties", "patternProperties", "allOf", "anyOf", "oneOf")
_END = "\n</parameter>\n"
_MAX_NAME = 128


def tagged_arguments(rule: str, name: str, schema: Mapping[str, Any], field: str) -> list[str]:
    """A call of the function `name`, from its tag to the end of it. schema: of type object; what it
    says has been checked. field: that has it.

    Raises: InvalidArgumentError for what cannot be enforced where values are plain text.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    _check_references(schema, field)
    for each in (*_OF_OBJECTS, "$ref", "enum", "const"):
        if each in schema:
            raise refused(
                field, f"has {each!r} at its root, which tags cannot keep to; leave it out"
            )
    begin, end = json.dumps(f"<function={name}>\n"), json.dumps("</function>")
    is_open = not properties and schema.get("additionalProperties") is not False
    if is_open:
        rules = [f"{rule}: {begin} ({rule}_any)* {end}"]
        return [
            *rules,
            f'{rule}_any: "<parameter=" /[A-Za-z0-9_.-]{{1,64}}/ ">\\n" {rule}_text',
            _text(rule),
        ]
    required = schema.get("required") or ()
    if missing := [each for each in required if each not in properties]:
        raise refused(field, f"requires {missing[0]!r}, which it does not describe")
    rules, parts, has_text = list[str](), list[str](), False
    for at, key in enumerate(properties):
        if (
            len(key) > _MAX_NAME
            or not key.isprintable()
            or set(key) & set("<>")
            or key != key.strip()
        ):
            raise refused(
                field, f"has a property {key[:64]!r}, which cannot be in a tag; rename it"
            )
        of_value, is_text = _value(rule, key, schema, field)
        has_text |= is_text
        rules.append(f"{rule}_{at}: {json.dumps(f'<parameter={key}>' + chr(10))} {of_value}")
        parts.append(f"{rule}_{at}" if key in required else f"({rule}_{at})?")
    if has_text:
        rules.append(_text(rule))
    return [f"{rule}: {begin} {' '.join(parts)} {end}", *rules]


def _text(rule: str) -> str:
    # A lexeme that is lazy ends where its end first is. Who reads it takes any closing tag for one.
    body = r"/(.|\n)*/ & ~/(.|\n)*<\/parameter>(.|\n)*/"
    return f"{rule.upper()}: {body}\n{rule}_text[lazy]: {rule.upper()} {json.dumps(_END)}"


def _check_references(schema: object, field: str) -> None:
    """Each value is held to a schema of its own, which has the definitions and nothing above it."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each.values()
            reference = each.get("$ref", "#/$defs/")
            if isinstance(reference, str) and not reference.startswith(_TO_DEFINITIONS):
                what = f"has $ref {reference[:64]!r}, which tags cannot keep to"
                raise refused(field, f'{what}; let it go to "#/$defs/NAME"')
        elif isinstance(each, list):
            waiting += each


def _value(rule: str, key: str, root: Mapping[str, Any], field: str) -> tuple[str, bool]:
    """With its end, and whether it is the rule's text."""
    ways, kinds, texts = alternatives(root, key), kinds_of(root, key), list[str]()
    end, others = json.dumps(_END), list[Mapping[str, Any]]()
    schema = root["properties"][key]
    if kinds and "string" not in kinds:
        ways, others = [], [schema]
    elif not ways and schema is not True:
        what = f"has a schema of {key[:64]!r} that plain text cannot be held to"
        raise refused(field, f"{what}: it allows nothing, contradicts itself or is too large")
    for each in ways:
        values, own = listed(each), kinds_of_one(each)
        if own and "string" not in own:
            others.append(each)
        elif values is not None:
            texts += [_spelt(value, kinds, key, field) for value in values]
        elif limits := sorted(each.keys() & _OF_TEXTS):
            what = f"has {limits[0]!r} of {key[:64]!r}, which plain text cannot be held to"
            raise refused(field, f"{what}; leave it out")
        else:
            return f"{rule}_text", True
    if not ways and not others:
        return f"{rule}_text", True
    spelt = [json.dumps(each) for each in texts]
    if others:
        definitions = {name: root[name] for name in _DEFINITIONS if name in root}
        options = {"x-guidance": {"whitespace_pattern": SPACES}}
        spelt.append(f"%json {json.dumps({'anyOf': others, **definitions, **options})}")
    return f"({' | '.join(spelt)}) {end}", False


def _spelt(value: object, kinds: frozenset[str], key: str, field: str) -> str:
    """A value that is listed, as it is read back."""
    text = value if isinstance(value, str) else json.dumps(value)
    is_read_back = as_json(text, kinds) == json.dumps(value, ensure_ascii=False)
    if not is_read_back or "</parameter>" in text or text[:1] == "\n" or text[-1:] == "\n":
        what = f"lists a value of {key[:64]!r} that plain text cannot tell from another"
        raise refused(field, f"{what}; leave it out")
    return text
