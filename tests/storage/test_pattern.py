import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.adapter.pattern import Budget, Pattern
from storage.adapter.pattern_syntax import PatternSyntaxError

NAME = "model.layers.10.self_attn.q_proj"


def fullmatch(pattern: str, name: str) -> bool:
    return Pattern(pattern).fullmatch(name, Budget())


@pytest.mark.parametrize(
    "pattern",
    [
        r".*q_proj",
        r".*\.(q_proj|v_proj)$",
        r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r"model\.layers\.([0-9]|1[0-5])\..*proj",
        r"(?:.*?(?:language|text).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj))",
        r"^(model)(?=\.).*\.(q_proj|k_proj)$",
        r"^(?!.*vision).*q_proj",
        r"^(?!.*layers).*q_proj",
        r"model.layers.(?P<n>\d+).self_attn.q_proj",
        r".*layers\.(?:1[^0]|20)\..*",
        r"model\.[a-z]+\.\d{2}\.[\w.]+",
        r"model\.[a-z]+\.\d{3,}\.[\w.]+",
        r"model\.layers\.\d{,2}\..*",
        r"\Amodel.*\Z",
        r"model.layers.10.self_attn.q_proj",
        r"model.layers.1.self_attn.q_proj",
        r"q_proj",
        r".*{x}",
        r".*[]q_]proj",
        r".*[^]x]proj",
        r"(model|layers|\.|\d|self_attn|q_proj)*",
        r".*\Bproj",
        r"",
    ],
)
@pytest.mark.parametrize("name", [NAME, "model.layers.1.mlp.up_proj", "lm_head", "a{x}", ""])
def test_agrees_with_re(pattern: str, name: str) -> None:
    assert fullmatch(pattern, name) == (re.fullmatch(pattern, name) is not None)


atoms = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\.",
        r"\w",
        r"\d",
        "[ab]",
        "[^a]",
        "^",
        "$",
        r"\b",
        r"\B",
        "(?=a)",
        "(?!b)",
        "()",
    ]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "*?", "{0,}"])).map(
            lambda p: f"({p[0]}){p[1]}"
        ),
        inner.map(lambda p: f"(?={p})"),
        inner.map(lambda p: f"(?!{p})"),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(patterns, st.text(alphabet="ab.1", min_size=1, max_size=6))
def test_agrees_with_re_on_generated_patterns(pattern: str, name: str) -> None:
    assert fullmatch(pattern, name) == (re.fullmatch(pattern, name) is not None)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.text(alphabet="ab.1", max_size=6))
def test_any_text_is_matched_or_refused(pattern: str, name: str) -> None:
    with contextlib.suppress(PatternSyntaxError):
        fullmatch(pattern, name)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"(a|a)*b",
        r"(a*)*b",
        r"(.*a){20}",
        r"(?=(a+)+b)a*",
        r"((a?){30}){20}a{30}",
    ],
)
def test_catastrophic_patterns_end_soon(pattern: str) -> None:
    started = time.process_time()
    assert not fullmatch(pattern, "a" * 60 + "c")
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        r"(?P<x>a)(?P=x)",
        r"(?<=a)b",
        r"(?i)a",
        r"(?i:a)",
        r"(?>a)",
        r"a++",
        r"a**",
        r"*a",
        r"(a",
        r"a)",
        r"[a",
        r"[b-a]",
        r"[\d-z]",
        r"a{3,2}",
        r"a{5000}",
        r"a\q",
        "a\\",
        r"^*",
        "(" * 100 + ")" * 100,
        "a" * 5000,
        r"((((a{1000}){1000}){1000}){1000})",
        r"((((){1000}){1000}){1000}){1000}",
    ],
)
def test_unsupported_or_malformed_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternSyntaxError):
        Pattern(pattern)


def test_budget_ends_a_long_search() -> None:
    pattern = Pattern("(" + "|".join([".*a"] * 300) + ")b")
    budget = Budget(steps=10_000)
    with pytest.raises(PatternSyntaxError, match="too long"):
        for _ in range(100):
            pattern.fullmatch("a" * 100, budget)


def test_dotted_suffix_matches_as_peft_reads_rank_pattern_keys() -> None:
    for pattern in (
        "q_proj",
        "attn.q_proj",
        "^model.layers.10.self_attn.q_proj",
        r"q_(proj|x)",
        "x",
    ):
        expected = re.match(rf"(.*\.)?({pattern})$", NAME) is not None
        assert Pattern(pattern, dotted_suffix=True).fullmatch(NAME, Budget()) == expected
