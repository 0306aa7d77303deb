"""Calls in tags, however the text is cut: values by the function's schema, and no text is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chorale.tool_call_pieces import FoundCall, gathered
from chorale.tool_call_values import as_json, kinds_of
from chorale.tool_calls import find_tool_calls, tool_call_parser
from chorale.tool_formats import TOOL_CALL_FORMATS
from tests.chorale.test_tool_calls import cuts

FORM = TOOL_CALL_FORMATS["qwen3_coder"]
PROPERTIES: dict[str, Any] = {
    "code": {"type": "string"},
    "n": {"type": "integer"},
    "on": {"type": "boolean"},
    "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "unit": {"enum": ["c", "f"]},
    "list": {"$ref": "#/$defs/L"},
}
SCHEMA = {"properties": PROPERTIES, "$defs": {"L": {"type": ["array", "number"]}}}
SCHEMAS = {"f": SCHEMA, "now": None}


def call(name: str = "f", **values: str) -> str:
    parts = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={name}>\n{parts}</function>\n</tool_call>"


def arguments(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


END = "</parameter>"
CODE = 'if a < b:\n\n  print("é</para>\t")\n'
# The text, its content and its calls.
WHOLE = [
    ("no <tool_call> here", "no <tool_call> here", []),
    (" \n", " \n", []),
    (call("now"), "", [FoundCall("now", "{}")]),
    (
        f"hi {call(code=CODE, n='7')}\n{call('now')}\n",
        "hi ",
        [FoundCall("f", arguments(code=CODE, n=7)), FoundCall("now", "{}")],
    ),
    (call(code="12", unit="c"), "", [FoundCall("f", arguments(code="12", unit="c"))]),
    (call(on="True", when="None"), "", [FoundCall("f", arguments(on=True, when=None))]),
    (call(on="maybe", n="1.5"), "", [FoundCall("f", arguments(on="maybe", n="1.5"))]),
    (call(when="now", list="[1, {}]"), "", [FoundCall("f", arguments(when="now", list=[1, {}]))]),
    (call("now", a="[1]", b="x"), "", [FoundCall("now", arguments(a=[1], b="x"))]),  # no schema
    (call(code=""), "", [FoundCall("f", arguments(code=""))]),
    (
        "<tool_call><function=f><parameter=code>x</parameter></function></tool_call>",
        "",
        [FoundCall("f", arguments(code="x"))],
    ),
    (  # in JSON the last one counts, too
        "<function=f><parameter=n>1</parameter><parameter=n>2</parameter></function> z",
        " z",
        [FoundCall("f", '{"n": 1, "n": 2}')],
    ),
    (call(list=f'["{END}", 1]', n="1"), "", [FoundCall("f", arguments(list=[END, 1], n=1))]),
    (call(list=f'["\\"{END}"]'), "", [FoundCall("f", arguments(list=[f'"{END}']))]),
    (call(list=' ["a', n="1"), "", [FoundCall("f", arguments(list=' ["a', n=1))]),  # no JSON
    (call(list=f'["a\n{END[:5]}', n="1"), "", [FoundCall("f", arguments(list='["a\n</par', n=1))]),
    (call(list='"a', n="1"), "", [FoundCall("f", arguments(list='"a', n=1))]),
    (f"so {call(n='1')[12:]}", "so ", [FoundCall("f", arguments(n=1))]),  # as models forget it
    (f"{call(n='1')[:-12]} bye", "\n bye", [FoundCall("f", arguments(n=1))]),
    (
        "<tool_call><tool_call>\n<function=now></function>",
        "<tool_call>",
        [FoundCall("now", "{}")],
    ),
    (
        f"<function=a > b>{call('now')}",
        "<function=a > b>",
        [FoundCall("now", "{}")],
    ),
]
BROKEN = [
    call("other", code="x"),
    "<tool_call>\n<function=f>\n<param",
    "<tool_call>\n<function=f",
    "<tool_call>\n<function=f>\nx</function>",
    f"<function={'f' * 300}>",
    f"<function=f><parameter={'f' * 300}>1</parameter></function>",
    "<function=f><parameter=>1</parameter></function>",
]
# Calls if they are told as they come, and then with this content and these arguments.
CUT = [
    ("<function=f>\n<parameter=code>\na\nb\n", "", '{"code": "a\\nb'),
    ("<function=f>\n<parameter=code>\na</par", "</par", '{"code": "a'),
    ("<function=f><parameter=code>a</parameter><parameter=n>1", "<parameter=n>1", '{"code": "a"'),
]


def parsed(parts: list[str], *, eager: bool) -> tuple[str, list[FoundCall]]:
    parser = tool_call_parser(FORM, SCHEMAS, eager=eager)
    pieces = [piece for part in parts for piece in parser.push(part)]
    found = gathered([*pieces, *parser.finish()])
    assert parser.num_calls == len(found[1])
    return found


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("text", "content", "calls"), WHOLE)
def test_calls_and_content(text: str, content: str, calls: list[FoundCall], eager: bool) -> None:
    for parts in cuts(text):
        assert parsed(parts, eager=eager) == (content, calls), parts
    assert find_tool_calls(text, FORM.name, SCHEMAS) == (content, calls)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_is_content(text: str, eager: bool) -> None:
    for parts in cuts(text):
        assert parsed(parts, eager=eager) == (text, []), parts


@pytest.mark.parametrize(("text", "content", "so_far"), CUT)
def test_a_call_that_breaks_off(text: str, content: str, so_far: str) -> None:
    for parts in cuts(text):
        assert parsed(parts, eager=False) == (text, []), parts
        assert parsed(parts, eager=True) == (content, [FoundCall("f", so_far)]), parts


def test_texts_come_in_pieces_and_other_values_whole() -> None:
    parser = tool_call_parser(FORM, SCHEMAS, eager=True)
    told = [len(parser.push(each)) for each in call(code="abcd", n="123")]
    assert sum(told) == len(["begun", '{"code": "', *"abcd", '"', ', "n": 123', "}"])
    long = tool_call_parser(FORM, SCHEMAS, eager=False)
    code = "x" * 100_000
    pieces = [piece for character in call(code=code, n="1") for piece in long.push(character)]
    assert gathered(pieces) == ("", [FoundCall("f", arguments(code=code, n=1))])


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "string"}, {"string"}),
        ({"enum": [1, 2.5, None, "x", [], {}, True]}, None),
        ({"const": "x"}, {"string"}),
        ({"oneOf": [{"type": ["string", "null"]}, {"$ref": "#/$defs/L"}]}, None),
        ({"$ref": "#/properties/x"}, set()),  # itself
        ({"$ref": "#/nowhere"}, set()),
        ({"$ref": "#/$defs/a~1b~01"}, {"null"}),
        ({"$ref": "#/$defs/L", "minItems": 2, "title": "x"}, {"array", "number"}),
        ({"$ref": "#/$defs/L", "type": "string"}, set()),  # which nothing is
        ({"anyOf": [{"type": "string"}, {}]}, set()),
        ({"anyOf": [{"type": "string"}] * 100}, set()),
        ("string", set()),
        ({"type": 3}, set()),
    ],
)
def test_kinds_of_strangers_schemas(schema: object, kinds: set[str] | None) -> None:
    definitions = {**SCHEMA["$defs"], "a/b~1": {"type": "null"}}
    found = kinds_of({"properties": {"x": schema}, "$defs": definitions}, "x")
    if kinds is None:
        assert {"string", "null", "array", "number"} <= found
    else:
        assert found == kinds


def test_values_as_json() -> None:
    assert as_json("2.0", {"integer"}) == "2.0"
    assert as_json(" 5\n", {"number"}) == "5"
    assert as_json("NaN", {"number"}) == '"NaN"'
    assert as_json("[" * 100_000, {"array"}) == json.dumps("[" * 100_000)
    assert as_json("true", {"string", "boolean"}) == "true"
    assert as_json('"x"', set()) == json.dumps('"x"')
    assert as_json("None", set()) == '"None"'
    assert kinds_of(None, "x") == kinds_of({"properties": 3}, "x") == frozenset()
