"""What an answer must be for its calls of functions to be of the model's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from chorale.tool_formats import NamedCalls, ObjectCalls, TaggedCalls, ToolCallFormat
from dataplane.constraints.grammar import SPACES, Grammar, of_lark
from dataplane.constraints.json_schema import checked_schema
from dataplane.constraints.limits import MAX_TEXT_BYTES
from dataplane.constraints.refusal import too_complex
from dataplane.constraints.tagged_tools import tagged_arguments

_MAX_MORE_CALLS = 127
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
_TEXT = r"/(.|\n)*/"
_TEXT_WITHOUT_TAG = rf"{_TEXT} & ~/(.|\n)*<function=(.|\n)*/"  # which begins a call, too
_TEXT_WITHOUT_OBJECT = r"/([ \t\r\n]*[^{ \t\r\n](.|\n)*)?/"  # that begins with one


class Function(NamedTuple):
    """position: in the request's tools. parameters: a JSON schema; None: it takes none. strict:
    whether its arguments must match them even where the model need not call anything."""

    position: int
    name: str
    parameters: Mapping[str, Any] | None
    strict: bool


def calls_grammar(
    form: ToolCallFormat,
    functions: Sequence[Function],
    *,
    required: bool,
    single: bool,
    token_id: Callable[[str], int | None],
) -> Grammar:
    """Calls of `functions`, as llguidance reads it.

    required: they are all that the answer is; otherwise it may be a text, and after any text they
    may come. single: one at most. token_id: of a text that is one added token of the tokenizer's,
    which is the only way that models write it.

    Raises: InvalidArgumentError for parameters that are too large or cannot be enforced.
    """
    schemas = [_schema(each, enforced=required or each.strict) for each in functions]
    size = sum(len(json.dumps(each)) for each in schemas)
    if size > MAX_TEXT_BYTES:
        what = f"have parameters of {size} characters, which are to be enforced"
        raise too_complex("tools", f"{what}; at most {MAX_TEXT_BYTES} go")
    rules: list[str] = []
    for at, (function, schema) in enumerate(zip(functions, schemas, strict=True)):
        rules += _call(form, f"tool_{at}", function, schema, token_id)
    rules.append(f"tool: {' | '.join(f'tool_{at}' for at in range(len(functions)))}")
    rules += _calls(form, single, token_id)
    rules += ["start: first"] if required else _or_text(form, token_id)
    return Grammar("tools", of_lark("\n".join(rules)))


def _call(
    form: ToolCallFormat,
    rule: str,
    function: Function,
    schema: Mapping[str, Any],
    token_id: Callable[[str], int | None],
) -> list[str]:
    """The rule of one call, without its opener, and rules that it uses."""
    if isinstance(form, TaggedCalls):
        field = f"tools[{function.position}].function.parameters"
        return tagged_arguments(rule, function.name, schema, field)
    options = {"whitespace_pattern": SPACES}
    arguments = f"%json {json.dumps({**schema, 'x-guidance': options})}"
    if isinstance(form, NamedCalls):
        an_id = f"({_mark(form.id_mark, token_id)} /[A-Za-z0-9]{{9}}/)?"
        mark = _mark(form.arguments_mark, token_id)
        return [f"{rule}: {json.dumps(function.name)} {an_id} {mark} {arguments}"]
    head = f'{{"name": {json.dumps(function.name)}, "{form.arguments}": '
    return [f"{rule}: {json.dumps(head)} {arguments} {json.dumps('}')}"]


def _schema(function: Function, *, enforced: bool) -> Mapping[str, Any]:
    parameters = _NO_ARGUMENTS if function.parameters is None else function.parameters
    if enforced:
        checked_schema(json.dumps(parameters), f"tools[{function.position}].function.parameters")
    else:
        parameters = _ANY_OBJECT
    return {"type": "object", **parameters}


def _calls(form: ToolCallFormat, single: bool, token_id: Callable[[str], int | None]) -> list[str]:
    """`first`: all calls; `rest`: what follows the opener of the first one."""
    opener = _mark(form.opener, token_id)
    if isinstance(form, NamedCalls):
        more = "" if single else f"({opener} tool){{0,{_MAX_MORE_CALLS}}}"
        return [f"first: {opener} rest", f"rest: tool {more}"]
    closer = _mark(form.closer, token_id)
    if isinstance(form, ObjectCalls) and form.opens_list:
        more = "" if single else f'(", " tool){{0,{_MAX_MORE_CALLS}}}'
        return [f"first: {opener} rest", f'rest: " "? "[" tool {more} "]"']
    if not form.opener:
        return ["first: tool"]  # such models' chat templates take no more calls back
    more = "" if single else f'("\\n" {opener} body){{0,{_MAX_MORE_CALLS}}}'
    return [f"first: {opener} rest", f"rest: body {more}", f'body: "\\n" tool "\\n" {closer}']


def _or_text(form: ToolCallFormat, token_id: Callable[[str], int | None]) -> list[str]:
    if not form.opener:
        return ["start: first | TEXT", f"TEXT: {_TEXT_WITHOUT_OBJECT}"]
    # A lexeme that is lazy ends at the first opener, so that no TEXT goes beyond it.
    text = _TEXT_WITHOUT_TAG if isinstance(form, TaggedCalls) else _TEXT
    rules = [f"TEXT: {text}", f"spelled[lazy]: TEXT {json.dumps(form.opener)}"]
    if token_id(form.opener) is None:
        return [*rules, "start: TEXT | spelled rest"]
    return [*rules, f"start: TEXT | (TEXT {_mark(form.opener, token_id)} | spelled) rest"]


def _mark(text: str, token_id: Callable[[str], int | None]) -> str:
    number = token_id(text) if text else None
    return json.dumps(text) if number is None else f"<[{number}]>"
