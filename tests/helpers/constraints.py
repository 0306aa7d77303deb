"""Constraints over the demo's tokenizer, and a check of answers that is no part of the product."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chorale.v1 import inference_pb2 as pb
from dataplane.channel import Vocabulary
from dataplane.constraints.grammar import grammar_of

MODEL = Path(__file__).parents[2] / "examples" / "demo" / "model"
EOS = 1
VOCAB = 512

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", None]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def constraint(**kind: Any) -> pb.Constraint:
    """As the contract has it; a schema may be an object, choices a list."""
    if not isinstance(kind.get("json_schema", ""), str):
        kind["json_schema"] = json.dumps(kind["json_schema"])
    if "choices" in kind:
        kind["choices"] = pb.Choices(texts=kind["choices"])
    return pb.Constraint(**kind)


def grammar(**kind: Any) -> str:
    return grammar_of(constraint(**kind)).text


@cache
def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def demo_vocabulary(vocab_size: int = VOCAB) -> Vocabulary:
    return Vocabulary(
        tokenizer=demo_tokenizer().to_str().encode(),
        num_tokens=VOCAB,
        vocab_size=vocab_size,
        eos_token_ids=[EOS],
    )


def text_of(token_ids: list[int]) -> str:
    return demo_tokenizer().decode(token_ids, skip_special_tokens=True)


def holds(schema: Any, value: Any) -> bool:
    """By the definition, of the keywords that tests use."""
    if isinstance(schema, bool):
        return schema
    return all(_KEYWORDS[name](schema, value) for name in schema)


def _typed(name: str, value: Any) -> bool:
    match name:
        case "integer":
            return type(value) is int or (type(value) is float and value.is_integer())
        case "number":
            return type(value) in (int, float)
        case _:
            kinds = {"object": dict, "array": list, "string": str, "boolean": bool}
            return value is None if name == "null" else isinstance(value, kinds[name])


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _items(schema: Any, value: Any) -> bool:
    if not isinstance(value, list):
        return True
    first = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return all(holds(first[at] if at < len(first) else rest, each) for at, each in enumerate(value))


def _properties(schema: Any, value: Any) -> bool:
    if not isinstance(value, dict):
        return True
    for name, each in value.items():
        found = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        found += [s for p, s in schema.get("patternProperties", {}).items() if re.search(p, name)]
        found = found or [schema.get("additionalProperties", True)]
        if not all(holds(part, each) for part in found):
            return False
    return True


def _of(kind: type, test: Any) -> Any:
    return lambda schema, value: not isinstance(value, kind) or test(schema, value)


def _of_number(test: Any) -> Any:
    return lambda schema, value: not _is_number(value) or test(schema, value)


_KEYWORDS: dict[str, Any] = {
    "type": lambda s, v: any(
        _typed(each, v) for each in (s["type"] if isinstance(s["type"], list) else [s["type"]])
    ),
    "const": lambda s, v: s["const"] == v,
    "enum": lambda s, v: v in s["enum"],
    "minimum": _of_number(lambda s, v: v >= s["minimum"]),
    "maximum": _of_number(lambda s, v: v <= s["maximum"]),
    "exclusiveMinimum": _of_number(lambda s, v: v > s["exclusiveMinimum"]),
    "exclusiveMaximum": _of_number(lambda s, v: v < s["exclusiveMaximum"]),
    "multipleOf": _of_number(
        lambda s, v: math.isclose(v / s["multipleOf"], round(v / s["multipleOf"]))
    ),
    "minLength": _of(str, lambda s, v: len(v) >= s["minLength"]),
    "maxLength": _of(str, lambda s, v: len(v) <= s["maxLength"]),
    "pattern": _of(str, lambda s, v: re.search(s["pattern"], v) is not None),
    "required": _of(dict, lambda s, v: set(s["required"]) <= set(v)),
    "minProperties": _of(dict, lambda s, v: len(v) >= s["minProperties"]),
    "maxProperties": _of(dict, lambda s, v: len(v) <= s["maxProperties"]),
    "properties": _properties,
    "patternProperties": _properties,
    "additionalProperties": _properties,
    "minItems": _of(list, lambda s, v: len(v) >= s["minItems"]),
    "maxItems": _of(list, lambda s, v: len(v) <= s["maxItems"]),
    "items": _items,
    "prefixItems": _items,
    "anyOf": lambda s, v: any(holds(each, v) for each in s["anyOf"]),
    "oneOf": lambda s, v: sum(holds(each, v) for each in s["oneOf"]) == 1,
    "allOf": lambda s, v: all(holds(each, v) for each in s["allOf"]),
}
