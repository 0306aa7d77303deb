"""Which constraints are taken, and that what a grammar allows is what its constraint says."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorale.errors import InvalidArgumentError
from chorale.v1 import inference_pb2 as pb
from dataplane.constraints.grammar import grammar_of
from dataplane.constraints.matcher import GrammarTokens
from dataplane.errors import ConstraintError
from tests.helpers.constraints import (
    EOS,
    PERSON,
    VOCAB,
    constraint,
    demo_tokenizer,
    demo_vocabulary,
    grammar,
    holds,
    text_of,
)

TOKENS = GrammarTokens(demo_vocabulary())
NESTED: dict[str, Any] = {"type": "integer"}
for _ in range(70):
    NESTED = {"items": NESTED}


def refusal(**kind: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as seen:
        grammar_of(constraint(**kind))
    return seen.value


def allows(text: str, **kind: Any) -> bool:
    matcher = TOKENS.matcher(grammar(**kind))
    try:
        matcher.push(demo_tokenizer().encode(text, add_special_tokens=False).ids)
    except ConstraintError:
        return False
    return matcher._matcher.is_accepting()


def walk(text: str, seed: int, max_tokens: int = 250) -> tuple[list[int], bool]:
    """Tokens chosen at random of those allowed; whether the end was reached."""
    choose = random.Random(seed)
    matcher = TOKENS.matcher(text)
    words = np.zeros(TOKENS.num_words, dtype=np.int32)
    tokens: list[int] = []
    while len(tokens) < max_tokens and not matcher.is_complete:
        matcher.fill(words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[:VOCAB]).tolist()
        assert allowed
        if EOS in allowed and choose.random() < 0.5:
            return tokens, True
        # Quotes and brackets end what a random text would go on with for ever.
        ends = [each for each in allowed if text_of([each]) in ('"', "]", "}", ",")]
        token = choose.choice(ends if ends and choose.random() < 0.4 else allowed)
        if token == EOS:
            return tokens, True
        matcher.push([token])
        tokens.append(token)
    return tokens, matcher.is_complete


SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "number", "exclusiveMinimum": -2, "maximum": 3.5},
    {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 99},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[ab]{2}(x|yy)?$"},
    {"type": "string", "pattern": "b"},
    {"type": ["string", "null"], "maxLength": 2},
    {"const": {"a": [1, "ß"]}},
    {"enum": ["x", 1, None, [True]]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}], "maximum": 5},
    {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 20}]},
    {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    {
        "type": "object",
        "patternProperties": {"^a": {"type": "integer", "maximum": 9, "minimum": 0}},
        "additionalProperties": {"type": "string", "maxLength": 3},
        "maxProperties": 3,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}},
        "required": ["a"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_every_text_that_a_schema_allows_is_valid(schema: Any) -> None:
    text, num_ended = grammar(json_schema=schema), 0
    for seed in range(12):
        tokens, ended = walk(text, seed)
        num_ended += ended
        if ended:
            assert holds(schema, json.loads(text_of(tokens))), text_of(tokens)
    assert num_ended >= 3, "so that something was tested"


def test_references_lead_anywhere_within_the_schema() -> None:
    tree = {
        "$defs": {
            "tree~/": {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree~0~1"}}},
                "required": ["kids"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree~0~1",
    }
    assert allows('{"kids": [{"kids": []}]}', json_schema=tree)
    assert not allows('{"kids": [{}]}', json_schema=tree)
    for reference in ("#/$defs/other", "#/title", "http://localhost/", "#anchor", "$defs/tree"):
        error = refusal(json_schema={"title": {"not": {}}, "$ref": reference})
        assert "$ref" in error.message and error.metadata["field"].endswith(".json_schema")


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"$ref": "#"}, "#"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "#/$defs/a"),
        (
            {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "properties": {"x": {"$ref": "#/$defs/a"}},
            },
            "#/$defs/",
        ),
    ],
)
def test_references_that_lead_to_themselves_alone_are_refused(schema: Any, at: str) -> None:
    error = refusal(json_schema=schema)
    assert f" at {at}" in error.message and "leads back to itself" in error.message
    assert error.metadata["field"] == "sampling.constraint.json_schema"


@pytest.mark.parametrize(
    "keyword",
    ["not", "if", "contains", "uniqueItems", "propertyNames", "dependentRequired", "x-guidance",
     "nullable", "unknown", "contentEncoding", "unevaluatedProperties", "$dynamicRef", "$anchor"],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ["", "properties", "$defs", "anyOf", "items", "additionalProperties"]
)
def test_what_cannot_be_enforced_is_refused_wherever_it_is(keyword: str, place: str) -> None:
    part: Any = {keyword: {"lenient": True}}
    schema = {
        "": part,
        "properties": {"properties": {"unknown": part}},
        "$defs": {"$defs": {"deep": {"items": part}}},
        "anyOf": {"anyOf": [{}, part]},
    }.get(place, {place: part})
    error = refusal(json_schema=schema)
    assert error.reason == "CONSTRAINT_INVALID" and f'"{keyword}"' in error.message


def test_names_that_look_like_keywords_are_names() -> None:
    schema = {
        "title": "T",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:x",
        "description": "d",
        "type": "object",
        "properties": {"not": {"const": 1, "default": {"not": 1}}, "if": {"enum": [{"not": 2}]}},
        "required": ["not"],
        "additionalProperties": False,
    }
    assert allows('{"not":1}', json_schema=schema)
    assert not allows('{"if":1}', json_schema=schema)


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        ({"json_schema": "{"}, "INVALID", "not valid JSON"),
        ({"json_schema": "[" * 60_000}, "TOO_COMPLEX", "64 levels"),
        ({"json_schema": NESTED}, "TOO_COMPLEX", "64 levels"),
        ({"json_schema": {"const": json.dumps([0] * 30_000)}}, "TOO_COMPLEX", "65536"),
        ({"json_schema": "NaN"}, "INVALID", "NaN"),
        ({"json_schema": '{"minimum": 1e999}'}, "INVALID", "1e999"),
        ({"json_schema": "3"}, "INVALID", "no schema"),
        ({"json_schema": " "}, "INVALID", "empty"),
        ({"json_schema": {"anyOf": {}}}, "INVALID", "list of schemas"),
        ({"json_schema": {"properties": []}}, "INVALID", "object of schemas"),
        ({"json_schema": {"items": [{}]}}, "INVALID", "no schema"),
        ({"json_schema": {"pattern": 3}}, "INVALID", "pattern 3"),
        ({"json_schema": {"pattern": "(a{500}){500}"}}, "TOO_COMPLEX", "20000 parts"),
        ({"json_schema": {"$id": "a", "items": {"$id": "b"}}}, "INVALID", '"$id"'),
        (
            {"json_schema": {"items": {"allOf": [{"$ref": "#"}] * 501}}},
            "TOO_COMPLEX",
            "501 of $ref",
        ),
        ({"json_object": False}, "INVALID", "false"),
        ({"regex": "a" * 8193}, "TOO_COMPLEX", "8192"),
        ({"regex": "(" * 65 + ")" * 65}, "TOO_COMPLEX", "64 levels"),
        ({"regex": "((a{100}){100}){100}"}, "TOO_COMPLEX", "20000 parts"),
        ({"regex": "a{200}{200}"}, "TOO_COMPLEX", "20000 parts"),
        ({"regex": "a{0,99999999999999999999}"}, "TOO_COMPLEX", "20000 parts"),
        ({"regex": "([ab]c{2,150}){150}"}, "TOO_COMPLEX", "20000 parts"),
        ({"choices": []}, "INVALID", "0 texts"),
        ({"choices": ["a"] * 257}, "INVALID", "257 texts"),
        ({"choices": ["a", ""]}, "INVALID", "texts[1] is empty"),
        ({"choices": ["a" * 40_000, "b" * 40_000]}, "TOO_COMPLEX", "80000 bytes"),
        ({"grammar": 'start: %json {"x": 1}'}, "INVALID", "%json"),
        ({"grammar": "start: a\na[temperature=0.5]: /b/"}, "INVALID", "temperature"),
        ({"grammar": "start: " + "(" * 65}, "TOO_COMPLEX", "64 levels"),
        ({"grammar": 'start: "a"~20000'}, "TOO_COMPLEX", "10000 times"),
        ({"grammar": "start: /(a{500}){500}/"}, "TOO_COMPLEX", "20000 parts"),
        ({"grammar": "\n".join(f"r{i}: r{i + 1}" for i in range(501))}, "TOO_COMPLEX", "501 rules"),
    ],
)
def test_refusals_name_field_and_way_out(kind: dict[str, Any], reason: str, said: str) -> None:
    error = refusal(**kind)
    assert error.reason == f"CONSTRAINT_{reason}" and said in error.message, error.message
    field = error.metadata["field"]
    assert field.startswith(f"sampling.constraint.{next(iter(kind))}") and field in error.message
    assert len(error.message) < 500


def test_no_kind_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="names no kind"):
        grammar_of(pb.Constraint())


@pytest.mark.parametrize(
    "regex",
    [r"a{3}b{2,5}(c|d{1,3}){1,100}", r"[({]{1,9}\(\{", r"(?:\w+ ){0,50}\w+", r"[]a]{2}[^]]\]",
     r"(a*)+b?{2}", "a{,3}", "x{2", "}{", ")", "[[:alpha:](]{3}", r"\{20000\}"],
)  # fmt: skip
def test_modest_regular_expressions_pass(regex: str) -> None:
    assert grammar(regex=regex)


@pytest.mark.parametrize(
    ("regex", "yes", "no"),
    [
        (r"[a-c]{2,3}-\d+", ["ab-1", "abc-12"], ["a-1", "abcd-1", "ab-", "xab-1"]),
        ("a/b\\/c", ["a/b/c"], ["a", "a/b"]),
        ('say "hi"\\n', ['say "hi"\n'], ["say"]),
        ("a\nb", ["a\nb"], ["ab", "anb"]),
        ("a\\\nb", ["a\nb"], ["a\\nb", "ab"]),
        ("(?i)yes|no", ["YES", "no"], ["maybe"]),
    ],
)
def test_a_regular_expression_is_for_the_whole_text(
    regex: str, yes: list[str], no: list[str]
) -> None:
    for text in yes:
        assert allows(text, regex=regex) and re.fullmatch(regex, text)
    for text in no:
        assert not allows(text, regex=regex)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_choices_are_taken_by_the_letter(texts: list[str], data: st.DataObject) -> None:
    for text in texts:
        assert allows(text, choices=texts)
    other = data.draw(st.sampled_from([texts[0][:-1], texts[0] + "a", f".{texts[0]}"]))
    assert allows(other, choices=texts) == (other in texts)


@pytest.mark.parametrize(
    "kind",
    [
        {"grammar": "start: /" + "[a]" * 40},
        {"grammar": 'start: "a"' + "\n" * 60_000},
        {"grammar": 'start: "a"\na' + " " * 60_000},
        {"grammar": 'start: "a"\n' + "[" * 60_000},
        {"grammar": 'start: "a"\n' + '"\\' * 30_000},
        {"json_schema": {"patternProperties": {"[" * 8_000 + str(at): True for at in range(7)}}},
    ],
    ids=["classes", "lines", "spaces", "brackets", "quotes", "patterns"],
)
def test_reading_takes_time_by_length_whatever_is_read(kind: dict[str, Any]) -> None:
    """On the event loop, before anything else bounds it."""

    def too_slow(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, too_slow)
    # Of the processor; it takes some 0.01 s.
    signal.setitimer(signal.ITIMER_PROF, 1.5)
    try:
        with contextlib.suppress(InvalidArgumentError):
            grammar_of(constraint(**kind))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def test_literals_end_where_llguidance_ends_them() -> None:
    """Else what is refused could be hidden in one that only seems to be one."""
    assert allows("x\n", grammar="start: /x\n/")
    error = refusal(grammar='start: /x\n/ %json {"type": "null"} /y\n/')
    assert "%json" in error.message
    assert allows("a%json", grammar='start: "a" /[%]json/ // %json')


def test_a_grammar_is_read_as_lark_whatever_it_looks_like() -> None:
    hidden = json.dumps({"grammars": [{"json_schema": {"x-guidance": {}}}]})
    with pytest.raises(ConstraintError):
        TOKENS.matcher(grammar(grammar=hidden))
    lark = 'start: item ("," item)*  // %json\nitem: "x" | /[0-9]{1,3}/ | "%json temperature="'
    for text, good in [("x,12,%json temperature=", True), ("x,", False), ("1234", False)]:
        assert allows(text, grammar=lark) == good


def test_white_space_in_json_is_bounded() -> None:
    assert allows('{"a": 1,\n    "b": 2}', json_object=True)
    assert allows("{}", json_object=True) and not allows("{   }", json_object=True)
    assert not allows("[]", json_object=True) and not allows("{} ", json_object=True)
    assert not allows("{\n" + " " * 33 + "}", json_object=True)


def test_tokens_beyond_the_tokenizer_and_beyond_the_model_are_left_out() -> None:
    wide = GrammarTokens(demo_vocabulary(vocab_size=700))
    words = np.full(wide.num_words, -1, dtype=np.int32)
    wide.matcher(grammar(regex=".*")).fill(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert len(bits) == 704 and bits[:VOCAB].sum() > 400 and not bits[VOCAB:].any()
    narrow = GrammarTokens(demo_vocabulary(vocab_size=100))
    words = np.full(narrow.num_words, -1, dtype=np.int32)
    narrow.matcher(grammar(regex="[a-z]+")).fill(words)
    first = np.unpackbits(words.view(np.uint8), bitorder="little")[:100]
    words = np.zeros(TOKENS.num_words, dtype=np.int32)
    TOKENS.matcher(grammar(regex="[a-z]+")).fill(words)
    assert first.tolist() == np.unpackbits(words.view(np.uint8), bitorder="little")[:100].tolist()
    assert first.any()
