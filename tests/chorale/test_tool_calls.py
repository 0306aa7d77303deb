"""Calls told from text, however it is cut."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import pytest

from chorale.tool_call_object import MAX_DEPTH
from chorale.tool_call_pieces import FoundCall, gathered
from chorale.tool_calls import find_tool_calls, tool_call_parser
from chorale.tool_formats import TOOL_CALL_FORMATS

NAMES = {"f", "g"}
TRICKY = '{"a": "x}\\"<tool_call>", "b": [{}, "]"]}'
F_ONE = FoundCall("f", '{"a": 1}')

# The format, the text, its content and its calls.
WHOLE = [
    ("hermes", "no calls at <all>", "no calls at <all>", []),
    ("hermes", " \n ", " \n ", []),
    ("hermes", "a <tool", "a <tool", []),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F_ONE]),
    (
        "hermes",
        f'hi <tool_call>{{"name": "f", "arguments": {TRICKY}}}</tool_call>\n'
        '<tool_call> {"arguments":{}, "id": "7", "name":"g"} </tool_call>\n',
        "hi ",
        [FoundCall("f", TRICKY), FoundCall("g", "{}")],
    ),
    ("hermes", '<tool_call>{"name":"f","arguments":{"a": 1}}', "", [F_ONE]),
    ("hermes", '<tool_call><tool_call>{"name":"f","arguments":{"a": 1}}', "<tool_call>", [F_ONE]),
    ("hermes", '<tool_call>{"name":"f","arguments":{"a": 1}} bye', " bye", [F_ONE]),
    (
        "hermes",
        '<tool_call>{"name":"h","arguments":{}}</tool_call>'
        '<tool_call>{"name":"f","arguments":{"a": 1}}</tool_call>',
        '<tool_call>{"name":"h","arguments":{}}</tool_call>',
        [F_ONE],
    ),
    ("llama3_json", ' {"name": "f", "parameters": {"a": 1}}', "", [F_ONE]),
    (
        "llama3_json",
        '{"type":"function","name":"f","parameters":{"a": 1}}; {"name":"g","parameters":{}}',
        "",
        [F_ONE, FoundCall("g", "{}")],
    ),
    ("llama3_json", 'so {"name":"f","parameters":{}}', 'so {"name":"f","parameters":{}}', []),
    ("llama3_json", '{"x": 1}', '{"x": 1}', []),
    (
        "mistral",
        'ok [TOOL_CALLS] [{"name":"f","arguments":{"a": 1}}, {"name":"g","arguments":{}}]',
        "ok ",
        [F_ONE, FoundCall("g", "{}")],
    ),
    ("mistral", '[TOOL_CALLS][{"name":"f","arguments":{"a": 1}}, {bad', ", {bad", [F_ONE]),
    ("mistral", "[TOOL_CALLS]x", "[TOOL_CALLS]x", []),
    ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": 1}', "", [F_ONE]),
    (
        "mistral_args",
        f"ok[TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS] {TRICKY}\n[TOOL_CALLS] g[ARGS]{{}} ",
        "ok",
        [FoundCall("f", TRICKY), FoundCall("g", "{}")],
    ),
    ("mistral_args", '[TOOL_CALLS]f[ARGS]{"a": 1} bye', " bye", [F_ONE]),
    ("mistral_args", '[TOOL_CALLS]x[TOOL_CALLS]f[ARGS]{"a": 1}', "[TOOL_CALLS]x", [F_ONE]),
    ("mistral_args", '[TOOL_CALLS]f[TOOL_CALLS]f[ARGS]{"a": 1}', "[TOOL_CALLS]f", [F_ONE]),
    ("mistral_args", '[TOOL_CALLS]h[ARGS]{"a": 1}', '[TOOL_CALLS]h[ARGS]{"a": 1}', []),
    ("mistral_args", "[TOOL_CALLS]f[ARGS]x {", "[TOOL_CALLS]f[ARGS]x {", []),
    ("mistral_args", "[TOOL_CALLS]f[ARG", "[TOOL_CALLS]f[ARG", []),
    ("mistral_args", "[TOOL_CALLS][ARGS]{}", "[TOOL_CALLS][ARGS]{}", []),
    ("mistral_args", f"[TOOL_CALLS]{'f' * 65}[ARGS]{{}}", f"[TOOL_CALLS]{'f' * 65}[ARGS]{{}}", []),
]
# No calls, whatever way they are looked for.
BROKEN = [
    '<tool_call>{"name": "f"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>',
    '<tool_call>{"arguments": {"a": tru}, "name": "f"}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "why": "so", "arguments": {}}</tool_call>',
    '<tool_call>{"na',
    "<tool_call>[]</tool_call>",
]
# Calls if they are told as they come, and then with this content and these arguments.
CUT = [
    ('<tool_call>{"name":"f","arguments":{"a":1', "", '{"a":1'),
    ('<tool_call>{"name":"f","arguments":{"a":tru}}</tool_call> z', " z", '{"a":tru}'),
    ('<tool_call>{"name":"f","arguments":{"a":1]} z', "]} z", '{"a":1'),
    ('<tool_call>{"name":"f","arguments":{"a":1} ,"b":2} z', ' ,"b":2} z', '{"a":1}'),
    ('<tool_call>{"name":"f","arguments":{"a":1},"id":"', ',"id":"', '{"a":1}'),
]
CUT_BY_NAME = [
    ('[TOOL_CALLS]f[ARGS]{"a":1', "", '{"a":1'),
    ('[TOOL_CALLS]f[ARGS]{"a":tru} z', " z", '{"a":tru}'),
    ('[TOOL_CALLS]f[ARGS]{"a":1]} z', "]} z", '{"a":1'),
]


def parsed(form: str, parts: Sequence[str], *, eager: bool) -> tuple[str, list[FoundCall]]:
    parser = tool_call_parser(TOOL_CALL_FORMATS[form], NAMES, eager=eager)
    pieces = [piece for part in parts for piece in parser.push(part)]
    found = gathered([*pieces, *parser.finish()])
    assert parser.num_calls == len(found[1])
    return found


def cuts(text: str) -> list[list[str]]:
    return [list(text), *([text[:at], text[at:]] for at in range(len(text)))]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("form", "text", "content", "calls"), WHOLE)
def test_calls_and_content(
    form: str, text: str, content: str, calls: list[FoundCall], eager: bool
) -> None:
    for parts in cuts(text):
        assert parsed(form, parts, eager=eager) == (content, calls), parts
    assert find_tool_calls(text, form, NAMES) == (content, calls)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_is_content(text: str, eager: bool) -> None:
    for parts in cuts(text):
        assert parsed("hermes", parts, eager=eager) == (text, []), parts


@pytest.mark.parametrize(("text", "content", "arguments"), CUT + CUT_BY_NAME)
def test_a_call_that_breaks_off(text: str, content: str, arguments: str) -> None:
    form = "mistral_args" if text[0] == "[" else "hermes"
    for parts in cuts(text):
        assert parsed(form, parts, eager=False) == (text, []), parts
        assert parsed(form, parts, eager=True) == (content, [FoundCall("f", arguments)]), parts


def test_arguments_come_in_pieces_as_the_text_does() -> None:
    parser = tool_call_parser(TOOL_CALL_FORMATS["hermes"], NAMES, eager=True)
    shown: list[str] = []
    for character in 'x<tool_call>{"name": "f", "arguments": {"a": "bcd"}}</tool_call>':
        before = len(shown)
        shown += [repr(piece) for piece in parser.push(character)]
        assert len(shown) - before <= 2
    assert len(shown) == 2 + len('{"a": "bcd"}')
    whole = tool_call_parser(TOOL_CALL_FORMATS["hermes"], NAMES, eager=False)
    assert not whole.push('<tool_call>{"name": "f", "arguments": {"a": "bcd"}')
    assert len(whole.push("}")) == 2


def test_depth_and_size_are_bounded() -> None:
    def call(depth: int) -> str:
        nested = "[" * (depth - 1) + "]" * (depth - 1)
        return f'<tool_call>{{"name":"f","arguments":{{"a":{nested}}}}}</tool_call>'

    assert len(parsed("hermes", [call(MAX_DEPTH)], eager=False)[1]) == 1
    assert parsed("hermes", [call(MAX_DEPTH + 1)], eager=False) == (call(MAX_DEPTH + 1), [])
    parser = tool_call_parser(TOOL_CALL_FORMATS["hermes"], NAMES, eager=True)
    told = parser.push('<tool_call>{"arguments": {"a": "')
    for _ in range(100):
        told += parser.push("x" * 1000)
    content, calls = gathered(told)  # before the end: no more is held than is bounded
    assert not calls and len(content) > 30_000
    digits = '<tool_call>{"name":"f","arguments":{"a":' + "1" * 5000 + "}}"
    assert parsed("hermes", [digits], eager=False)[1] == []


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        *(("hermes", unit) for unit in ("<tool_call>", '<tool_call>{"name":"f",', " ", "<")),
        *(("mistral_args", unit) for unit in ("[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]{")),
        *(("qwen3_coder", unit) for unit in ("<function=", "<function=f>", "<tool_call>", "<")),
        ("qwen3_coder", "<function=f><parameter=a>"),
    ],
)
def test_time_grows_with_the_text_alone(form: str, unit: str) -> None:
    text = unit * ((200_000 if form == "hermes" else 60_000) // len(unit))
    began_s = time.process_time()
    content, calls = find_tool_calls(text, form, NAMES)
    assert (content, calls) == (text, [])
    assert time.process_time() - began_s < 10


def test_arguments_are_as_the_model_wrote_them() -> None:
    written = '{ "b":1.50,\n"a":"\\u00e9" }'
    text = json.dumps({"name": "f"})[:-1] + f', "parameters": {written}}}'
    assert find_tool_calls(text, "llama3_json", NAMES) == ("", [FoundCall("f", written)])
