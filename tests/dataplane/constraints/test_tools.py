"""Answers held to calls: whatever is drawn, they parse and match their schemas."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from chorale.errors import InvalidArgumentError
from chorale.tool_calls import find_tool_calls
from chorale.tool_formats import TOOL_CALL_FORMATS
from dataplane.channel import Vocabulary
from dataplane.constraints.matcher import GrammarTokens
from dataplane.constraints.tools import Function, calls_grammar
from tests.helpers.constraints import EOS, demo_tokenizer, holds

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 4}, "n": {"$ref": "#/$defs/N"}},
    "required": ["city", "n"],
    "additionalProperties": False,
    "$defs": {"N": {"enum": [1, "}", None]}},
}
FUNCTIONS = [Function(0, "city", CITY, True), Function(1, "stop-now", None, False)]
NAMES = {each.name for each in FUNCTIONS}
MARKS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]",),
    "llama3_json": (),
    "mistral_args": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "qwen3_coder": ("<tool_call>", "</tool_call>"),
}
# Plain text has no length that a grammar of tags could hold it to.
TAGGED = {**CITY, "properties": {**CITY["properties"], "city": {"enum": ["Rome", "1", ""]}}}
TEXTS = {"$defs": {"S": {"type": "string"}}}
SCHEMAS = {"city": TAGGED, "stop-now": None}


@cache
def tokens(form: str, special: bool | None) -> tuple[Tokenizer, GrammarTokens]:
    """The demo's, with the format's marks as special tokens, as others, or (None) spelled out."""
    tokenizer = Tokenizer.from_str(demo_tokenizer().to_str())
    if special is not None:
        tokenizer.add_tokens(
            [AddedToken(m, special=special, normalized=False) for m in MARKS[form]]
        )
    size = tokenizer.get_vocab_size()
    text = tokenizer.to_str()
    found = Vocabulary(
        tokenizer=text.encode(), num_tokens=size, vocab_size=size, eos_token_ids=[EOS]
    )
    return tokenizer, GrammarTokens(found)


def grammar(form: str, special: bool | None, **asked: bool) -> str:
    tokenizer, _ = tokens(form, special)
    lookup = tokenizer.token_to_id if special is not None else lambda _: None
    form_ = TOOL_CALL_FORMATS[form]
    functions = FUNCTIONS
    if form == "qwen3_coder":
        functions = [FUNCTIONS[0]._replace(parameters=TAGGED), FUNCTIONS[1]]
    return calls_grammar(form_, functions, **asked, token_id=lookup).text  # type: ignore[arg-type]


def drawn(
    form: str, special: bool | None, text: str, seed: int, begin: list[int]
) -> tuple[str, bool]:
    """A text that the grammar allows, from `begin` on, and whether it came to an end."""
    tokenizer, of_grammars = tokens(form, special)
    matcher = of_grammars.matcher(text)
    words = np.zeros(of_grammars.num_words, dtype=np.int32)
    choose = random.Random(seed)
    ids: list[int] = []
    while not matcher.is_complete and len(ids) < 300:
        matcher.fill(words)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        if len(ids) < len(begin):
            if begin[len(ids)] not in allowed:
                return tokenizer.decode(ids, skip_special_tokens=False), False
            token_id = begin[len(ids)]
        else:
            token_id = int(choose.choice(allowed.tolist()))
        matcher.push([token_id])
        ids.append(token_id)
    text = tokenizer.decode([each for each in ids if each != EOS], skip_special_tokens=False)
    return text, matcher.is_complete


@pytest.mark.parametrize("special", [True, False, None])
@pytest.mark.parametrize("form", TOOL_CALL_FORMATS)
@pytest.mark.parametrize("single", [True, False])
def test_required_calls_parse_and_match(form: str, special: bool | None, single: bool) -> None:
    text = grammar(form, special, required=True, single=single)
    ended, most = 0, 0
    for seed in range(6):
        answer, complete = drawn(form, special, text, seed, [])
        content, calls = find_tool_calls(answer, form, SCHEMAS)
        ended += complete
        if complete:
            assert calls and not content, answer
            most = max(most, len(calls))
        for call in calls:
            schema = FUNCTIONS[call.name == "stop-now"].parameters
            arguments = json.loads(call.arguments)
            if schema is None:
                assert arguments == {}
            else:
                assert set(arguments) == {"city", "n"} and arguments["n"] in (1, "}", None)
                assert holds({"type": "string", "maxLength": 4}, arguments["city"])
    assert ended >= 3
    assert most == 1 if single or form == "llama3_json" else most > 1


@pytest.mark.parametrize("special", [True, False, None])
@pytest.mark.parametrize("form", [form for form in MARKS if MARKS[form]])
def test_after_any_text_a_call_is_held_to_its_schema(form: str, special: bool | None) -> None:
    tokenizer, _ = tokens(form, special)
    text = grammar(form, special, required=False, single=True)
    opener = MARKS[form][0]
    for spelled in (False, True):
        parts = ["so: ", *(opener if spelled else [opener])]
        begin = [t for part in parts for t in tokenizer.encode(part, add_special_tokens=False).ids]
        answers = [drawn(form, special, text, seed, begin) for seed in range(4)]
        for answer, complete in answers:
            assert answer.startswith(f"so: {opener}")
            if complete:
                content, calls = find_tool_calls(answer, form, SCHEMAS)
                assert content == "so: " and len(calls) == 1, answer
        assert any(complete for _, complete in answers)
        wrong = [*begin, tokenizer.token_to_id("x")]
        assert drawn(form, special, text, 0, wrong) == (f"so: {opener}", False)
    plain = tokenizer.encode("no call {", add_special_tokens=False).ids
    assert drawn(form, special, text, 0, plain)[0].startswith("no call {")


def test_an_answer_of_bare_json_is_a_call_or_text() -> None:
    text = grammar("llama3_json", None, required=False, single=True)
    tokenizer, _ = tokens("llama3_json", None)
    brace, word = (tokenizer.encode(t, add_special_tokens=False).ids for t in ("{", "a {"))
    answer, complete = drawn("llama3_json", None, text, 1, brace)
    assert complete and len(find_tool_calls(answer, "llama3_json", NAMES)[1]) == 1
    assert drawn("llama3_json", None, text, 1, word)[0].startswith("a {")


def refusal(*functions: Function, required: bool = True) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as error:
        calls_grammar(
            TOOL_CALL_FORMATS["hermes"],
            functions,
            required=required,
            single=False,
            token_id=lambda _: None,
        )
    return error.value


def test_parameters_that_cannot_be_enforced_are_named() -> None:
    bad = {"type": "object", "not": {}}
    error = refusal(FUNCTIONS[0], Function(3, "x", bad, False))
    assert error.metadata["field"] == "chat.tools[3].function.parameters"
    assert '"not"' in error.message
    refusal(Function(0, "x", bad, True), required=False)
    long = {"type": "object", "description": "x" * 70_000}
    assert refusal(Function(0, "x", long, False)).reason == "CONSTRAINT_TOO_COMPLEX"
    # Not enforced, so that it need not be enforceable.
    form = TOOL_CALL_FORMATS["hermes"]
    free = [Function(0, "x", bad, False), Function(1, "y", long, False)]
    calls_grammar(form, free, required=False, single=True, token_id=lambda _: None)


def tagged(
    parameters: dict[str, Any] | None, *, required: bool = True, strict: bool = False
) -> str:
    form = TOOL_CALL_FORMATS["qwen3_coder"]
    functions = [Function(0, "f", parameters, strict)]
    return calls_grammar(
        form, functions, required=required, single=True, token_id=lambda _: None
    ).text


def allows(text: str, answer: str) -> bool:
    tokenizer, of_grammars = tokens("qwen3_coder", None)
    matcher = of_grammars.matcher(text)
    words = np.zeros(of_grammars.num_words, dtype=np.int32)
    for token_id in [*tokenizer.encode(answer, add_special_tokens=False).ids, EOS]:
        if matcher.is_complete:  # it may end by itself
            return token_id == EOS
        matcher.fill(words)
        if not np.unpackbits(words.view(np.uint8), bitorder="little")[token_id]:
            return False
        matcher.push([token_id])
    return matcher.is_complete


def in_tags(**values: str) -> str:
    parts = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function=f>\n{parts}</function>\n</tool_call>"


def test_values_in_tags_are_held_to_their_schemas() -> None:
    schema = {
        "properties": {
            "code": {"type": "string"},
            "unit": {"anyOf": [{"enum": ["c", "f"]}, {"type": "null"}]},
            "n": {"$ref": "#/$defs/N"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "any": {},
        },
        "required": ["code", "n"],
        "$defs": {"N": {"type": "integer", "maximum": 9}},
    }
    text = tagged(schema)
    code = "a < b\n\n</para> {"
    assert allows(text, in_tags(code=code, n="7"))
    assert allows(text, in_tags(code="", unit="c", n="7", list="[1,2]", any="x"))
    assert allows(text, in_tags(code=code, unit="null", n="7"))
    for wrong in (
        in_tags(code=code),
        in_tags(code=code, n="70"),
        in_tags(code=code, n="x"),
        in_tags(code=code, unit="k", n="7"),
        in_tags(code=code, n="7", list="[a]"),
        in_tags(n="7"),
        in_tags(code=code, n="7") + in_tags(code=code, n="7"),
    ):
        assert not allows(text, wrong), wrong
    found = find_tool_calls(in_tags(code=code, unit="null", n="7"), "qwen3_coder", {"f": schema})
    assert json.loads(found[1][0].arguments) == {"code": code, "unit": None, "n": 7}
    assert allows(tagged(None), in_tags()) and not allows(tagged(None), in_tags(a="1"))
    assert allows(tagged({}), in_tags(a="1", b="x"))
    free = tagged(schema, required=False, strict=True)
    assert allows(free, "no call") and allows(free, f"so {in_tags(code=code, n='7')}")
    for bare in (in_tags(code="x", n="70"), in_tags(code="x", n="70")[12:]):  # without its opener
        assert not allows(free, bare)


def test_what_is_allowed_in_tags_is_read_back() -> None:
    end = "</parameter>"
    texts = {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}
    for wrong in (f"x{end}y", f"{end}", f"x\n{end}\n</function>\n</tool_call>"):
        assert not allows(tagged(texts), in_tags(a=wrong))
        assert not allows(tagged({}), in_tags(a=wrong))
    lists = {"properties": {"a": {"type": ["array", "object"]}}, "required": ["a"]}
    answer = in_tags(a=f'["{end}", {{"{end}": "\\"{end}"}}]')
    assert allows(tagged(lists), answer)
    _, calls = find_tool_calls(answer, "qwen3_coder", {"f": lists})
    assert json.loads(calls[0].arguments) == {"a": [end, {end: f'"{end}'}]}
    twice = in_tags(a="1") + in_tags(a="2")
    twice = twice.replace("</function>\n</tool_call><tool_call>\n<function=f>\n", "")
    assert allows(tagged({}), twice)
    _, calls = find_tool_calls(twice, "qwen3_coder", {"f": None})
    assert json.loads(calls[0].arguments) == {"a": 2}


def test_limits_beside_references_and_alternatives_hold_in_tags() -> None:
    number = {"$defs": {"a/b": {"type": "integer"}}, "required": ["a"]}
    for value in (
        {"$ref": "#/$defs/a~1b", "minimum": 5},
        {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}], "minimum": 5},
        {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"const": "x"}], "minimum": 5},
    ):
        text = tagged({"properties": {"a": value}, **number})
        assert allows(text, in_tags(a="5"))
        assert not allows(text, in_tags(a="4")) and not allows(text, in_tags(a="y"))


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"properties": {"a": {"type": "string", "maxLength": 3}}}, "maxLength"),
        ({"properties": {"a": {"$ref": "#/$defs/S", "maxLength": 3}}, **TEXTS}, "maxLength"),
        ({"properties": {"a": {"type": "string", "anyOf": [{"maxLength": 3}]}}}, "anyOf"),
        ({"properties": {"a": {"$ref": "#/$defs/S", "type": "null"}}, **TEXTS}, "contradicts"),
        ({"properties": {"a": {"oneOf": [{"const": str(n)} for n in range(70)]}}}, "too large"),
        ({"properties": {"a": False}}, "allows nothing"),
        ({"properties": {"a": {"items": {"$ref": "#"}}}}, "NAME"),
        ({"properties": {"a": {"$ref": "#/properties/b"}, "b": {}}}, "NAME"),
        ({"properties": {"a": {"anyOf": [{"type": "string", "pattern": "x"}]}}}, "pattern"),
        ({"properties": {"a": {"enum": ["1", 1]}}}, "cannot tell"),
        ({"properties": {"a": {"enum": ["x</parameter>"]}}}, "cannot tell"),
        ({"properties": {"a>": {"type": "string"}}}, "rename"),
        ({"properties": {}, "required": ["a"], "additionalProperties": False}, "requires"),
        ({"anyOf": [{"required": ["a"]}]}, "anyOf"),
    ],
)
def test_what_tags_cannot_be_held_to_is_named(parameters: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what) as error:
        tagged({"type": "object", **parameters})
    assert error.value.metadata["field"] == "chat.tools[0].function.parameters"
