"""Which format of calls a model has, and that its marks are text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from chorale.errors import FailedPreconditionError
from dataplane.text.tokenizer import load_tokenizer
from dataplane.text.tool_format import tool_call_format
from tests.helpers.tokenizers import (
    CHAT_TEMPLATE,
    byte_level,
    metaspace,
    sentencepiece,
    write_tokenizer,
)

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("return <tool_call>{'name': …, 'arguments': …}</tool_call>", "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ('in the format {"name": function name, "parameters": dictionary of', "llama3_json"),
        ("format {\\'name\\': function name, \\'parameters\\': dictionary", "llama3_json"),
        ("<tool_call><function=name><parameter=arguments>", "qwen3_coder"),
        ("<function=name>{arguments}</function>", None),
        ("<tool_call>name<arg_key>arguments</arg_key>", None),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral_args"),
        ("{{ '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' }}", "mistral_args"),
        ("{{ '[TOOL_CALLS]' + name + '[CALL_ID]' }}", None),
        (CHAT_TEMPLATE, None),
    ],
)
def test_told_from_the_template(template: str, name: str | None) -> None:
    found = tool_call_format("auto", ["{{ messages }}", template])
    assert (found.name if found else None) == name
    forced = tool_call_format("mistral", [template])
    assert forced is not None and forced.name == "mistral"


def test_of_several_templates_any_may_tell(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path, byte_level())
    several = [
        {"name": "default", "template": CHAT_TEMPLATE},
        {"name": "tool_use", "template": WITH_TOOLS + "{# [TOOL_CALLS] #}"},
    ]
    import json

    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = several
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.tool_call_format and tokenizer.tool_call_format.name == "mistral"
    plain = tokenizer.encode_chat([USER], max_tokens=99)
    shown = tokenizer.encode_chat([USER], max_tokens=99, tools=[TOOL])
    assert shown[-len(plain) :] == plain and '"name"' in tokenizer.decode(shown)


def test_a_template_that_passes_over_tools_is_refused(tmp_path: Path) -> None:
    blind = load_tokenizer(write_tokenizer(tmp_path / "a", byte_level()), "hermes")
    assert blind.encode_chat([USER], max_tokens=99)
    with pytest.raises(FailedPreconditionError, match="does not show tools") as error:
        blind.encode_chat([USER], max_tokens=99, tools=[TOOL])
    assert error.value.reason == "TOOLS_UNSUPPORTED"


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "backend", [byte_level(), sentencepiece(strip=True), metaspace()], ids=["bytes", "sp", "words"]
)
def test_marks_of_calls_are_text_where_there_are_tools(
    tmp_path: Path, backend: Tokenizer, special: bool
) -> None:
    backend = Tokenizer.from_str(backend.to_str())
    backend.add_tokens([AddedToken("[TOOL_CALLS]", special=special, normalized=False)])
    directory = write_tokenizer(tmp_path, backend, chat_template=WITH_TOOLS)
    tokenizer = load_tokenizer(directory, "mistral")
    mark, end = backend.token_to_id("[TOOL_CALLS]"), backend.token_to_id("</s>")
    assert tokenizer.added_token_id("[TOOL_CALLS]") == mark
    assert tokenizer.added_token_id("[TOOL_") is None
    word = backend.token_to_id("a") or backend.token_to_id("▁hello")

    def text(**how: Any) -> str:
        detokenizer = tokenizer.detokenizer(**how)
        return "".join([*map(detokenizer.push, (mark, word, end)), detokenizer.flush()])

    assert "[TOOL_CALLS]" in text(shows_calls=True) and "</s>" not in text(shows_calls=True)
    assert ("[TOOL_CALLS]" in text()) is not special
