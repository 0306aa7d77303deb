"""Prompts are scored under each adapter as tokens are while they are generated."""

from __future__ import annotations

import openai
import pytest

import chorale
from examples.demo.voices import PROMPT
from tests.e2e.conftest import BASE, NAMES, expected
from tests.helpers.up import ChoraleUp

NUMBER = 407
ROUNDING = 0.15  # of bfloat16, in the batch of a prompt and in that of one token


@pytest.mark.parametrize("name", [*NAMES[:2], BASE])
def test_what_was_generated_scores_the_same_as_a_prompt(client: chorale.Client, name: str) -> None:
    made = client.complete(
        PROMPT.format(n=NUMBER),
        model=name,
        max_tokens=40,
        temperature=1.0,
        seed=3,
        logprobs=0,
        return_prompt_token_ids=True,
    )
    prompt = made.accepted.prompt_token_ids
    for _ in range(2):  # of the second one all is in the prefix cache
        scored = client.complete(
            None,
            prompt_token_ids=[*prompt, *made.token_ids],
            model=name,
            max_tokens=1,
            prompt_logprobs=1,
        )
        positions = scored.prompt_logprobs
        assert [each.chosen.token_id for each in positions] == [*prompt, *made.token_ids]
        for before, after in zip(made.logprobs, positions[len(prompt) :], strict=True):
            assert after.chosen.logprob == pytest.approx(before.chosen.logprob, abs=ROUNDING)
            assert after.top[0].logprob >= after.chosen.logprob


def test_an_adapters_own_answer_is_the_likelier_one(up: ChoraleUp) -> None:
    """As evaluation harnesses ask: the sum over the answer, after so many tokens of the context."""
    sdk = openai.OpenAI(base_url=f"http://{up.http_address}/v1", api_key="unused")
    context = PROMPT.format(n=NUMBER)

    def score(model: str, answer: str) -> float:
        asked = sdk.completions.create(
            model=model, prompt=context + answer, max_tokens=0, echo=True, logprobs=1
        )
        logprobs = asked.choices[0].logprobs
        assert logprobs is not None and asked.choices[0].text == context + answer
        offsets, each = logprobs.text_offset or [], logprobs.token_logprobs or []
        return sum(
            value
            for offset, value in zip(offsets, each, strict=True)
            if value is not None and offset >= len(context)
        )

    first, second = NAMES[:2]
    answers = {name: expected(name, NUMBER) for name in (first, second)}
    for mine, other in ((first, second), (second, first)):
        own = score(mine, " " + answers[mine].strip())
        assert own > score(mine, " " + answers[other].strip())
        assert own > score(other, " " + answers[mine].strip())


def test_offsets_hold_for_characters_of_several_tokens(up: ChoraleUp) -> None:
    sdk = openai.OpenAI(base_url=f"http://{up.http_address}/v1", api_key="unused")
    context, rest = "na\u00efve \U0001f600\U0001f1e9\U0001f1ea ", "407 ="
    asked = sdk.completions.create(
        model=BASE, prompt=context + rest, max_tokens=4, temperature=0, echo=True, logprobs=0
    )
    (choice,) = asked.choices
    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
    assert "".join(tokens[1:]) != choice.text, "some tokens are parts of characters"
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens[1:], offsets[1:], strict=True):
        is_part = "\ufffd" in token
        assert is_part or token == "</s>" or choice.text[offset:].startswith(token)
    of_face = [at for at, offset in enumerate(offsets) if offset == context.index("\U0001f600")]
    assert len(of_face) == 4, "each byte begins where the character does"
    assert "".join(t for t, o in zip(tokens, offsets, strict=True) if o >= len(context)).startswith(
        rest
    )
