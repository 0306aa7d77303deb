from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chorale.errors import FailedPreconditionError, InvalidArgumentError
from dataplane.errors import CheckpointError
from dataplane.text.tokenizer import TooManyTokensError, load_tokenizer
from tests.helpers.tokenizers import CHAT_TEMPLATE, byte_level, write_tokenizer

USER = {"role": "user", "content": "hi"}


def test_loads_and_encodes_as_transformers_does(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level()))
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("hello world", "größe 👩‍👩‍👧", "a</s>b", "\u2063plain tool call"):
        ids = tokenizer.encode(text, max_tokens=100)
        assert ids == reference(text)["input_ids"]
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    rendered = reference.apply_chat_template([USER], add_generation_prompt=True, tokenize=True)
    assert tokenizer.encode_chat([USER], max_tokens=100) == rendered["input_ids"]


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("the quick brown fox", max_tokens=99)) == (
        "the quick brown fox"
    )
    assert len(tokenizer.encode("h", max_tokens=99)) == 2


def test_too_many_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level()))
    assert len(tokenizer.encode("a b", max_tokens=4)) == 4
    with pytest.raises(TooManyTokensError, match="4 tokens"):
        tokenizer.encode("a b", max_tokens=3)
    with pytest.raises(TooManyTokensError, match="500 characters"):
        tokenizer.encode("x" * 500, max_tokens=3)


def test_threads_share_one_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level()))
    texts = [f"hello {number} größe " * 50 for number in range(40)]
    expected = [tokenizer.encode(text, max_tokens=9999) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: tokenizer.encode(text, max_tokens=9999), texts)) == (
            expected
        )


@pytest.mark.parametrize("named", [True, False])
def test_developers_are_systems_to_templates_that_do_not_name_them(
    tmp_path: Path, named: bool
) -> None:
    by_name = [
        {"name": "default", "template": CHAT_TEMPLATE},
        {"name": "tool_use", "template": CHAT_TEMPLATE + "{{ tools[0].x }}{# developer #}"},
    ]
    template: Any = by_name if named else CHAT_TEMPLATE
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level(), chat_template=template))

    def shown(role: str, *tools: dict[str, str]) -> str:
        messages = [{"role": role, "content": "be brief"}, USER]
        return tokenizer.decode(tokenizer.encode_chat(messages, max_tokens=99, tools=tools))

    assert shown("developer") == shown("system") != shown("user")
    if named:
        assert "developer" in shown("developer", {"x": "y"}), "that template knows the role"


def test_chat_template_missing_and_failing(tmp_path: Path) -> None:
    bare = load_tokenizer(write_tokenizer(tmp_path / "bare", byte_level(), chat_template=None))
    with pytest.raises(FailedPreconditionError) as missing:
        bare.encode_chat([USER], max_tokens=99)
    assert missing.value.reason == "CHAT_TEMPLATE_MISSING"
    templates = {
        "raises": "{{ raise_exception('x' * 10000) }}",
        "syntax": "{% for %}",
        "undefined": "{{ nothing.here.at_all }}",
        "unsafe": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    }
    for name, template in templates.items():
        path = write_tokenizer(tmp_path / name, byte_level(), chat_template=template)
        with pytest.raises(InvalidArgumentError) as failed:
            load_tokenizer(path).encode_chat([USER], max_tokens=99)
        assert failed.value.reason == "CHAT_TEMPLATE_FAILED"
        assert len(failed.value.message) < 400


IN_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
EITHER = "{% for m in messages %}{{ m.content if m.content is string else 'parts' }}{% endfor %}"


@pytest.mark.parametrize(("template", "shown"), [(IN_PARTS, "<user>hi"), (EITHER, "hi")])
def test_a_template_gets_texts_as_it_shows_them(tmp_path: Path, template: str, shown: str) -> None:
    """The first would show a text alone as nothing."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level(), chat_template=template))
    assert tokenizer.decode(tokenizer.encode_chat([USER], max_tokens=99)) == shown


def test_a_processor_s_template_counts_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level(), chat_template=None)
    path = tmp_path / "chat_template.json"
    path.write_text(json.dumps({"chat_template": IN_PARTS}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat([USER], max_tokens=99)) == "<user>hi"
    for text in ("{", "[]", '{"chat_template": 3}', "{}"):
        path.write_text(text)
        with pytest.raises(CheckpointError) as broken:
            load_tokenizer(tmp_path)
        assert broken.value.reason == "TOKENIZER_UNREADABLE"
    write_tokenizer(tmp_path, byte_level())  # with a template of its own
    load_tokenizer(tmp_path).encode_chat([USER], max_tokens=99)


def test_unreadable_files_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError) as none:
        load_tokenizer(tmp_path)
    assert none.value.reason == "TOKENIZER_UNREADABLE"
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"')
    with pytest.raises(CheckpointError) as broken:
        load_tokenizer(tmp_path)
    assert broken.value.reason == "TOKENIZER_UNREADABLE" and len(broken.value.message) < 600


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("times", [1, 200])
def test_spans(tmp_path: Path, add: bool, times: int) -> None:
    backend = byte_level()
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, backend))
    text = "größe 👩‍👩‍👧</s> 你好 " * times
    encoding = backend.encode(text, add_special_tokens=add)
    spans = list(tokenizer.spans(text, max_tokens=99_999, add_special_tokens=add))
    assert [span.token_id for span in spans] == encoding.ids
    assert [span.piece for span in spans] == encoding.tokens
    assert [(span.start, span.stop) for span in spans] == encoding.offsets
    assert {text[span.start : span.stop] for span in spans if span.piece == "</s>"} == {"</s>"}
    assert (spans[0].piece == "<s>") is add


def test_spans_of_nothing_and_of_too_much(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, byte_level()))
    assert list(tokenizer.spans("", max_tokens=9, add_special_tokens=False)) == []
    (bos,) = tokenizer.spans("", max_tokens=9, add_special_tokens=True)
    assert (bos.piece, bos.start, bos.stop) == ("<s>", 0, 0)
    for text in ("a b", "x" * 500):
        with pytest.raises(TooManyTokensError):
            tokenizer.spans(text, max_tokens=2, add_special_tokens=False)
