"""Constraints over a vocabulary of the size that Llama 3 has."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from dataplane.channel import Vocabulary, decode_to_engine, encode
from dataplane.constraints.limits import mask_cpu_s
from dataplane.constraints.matcher import GrammarTokens
from dataplane.constraints.trials import Trials
from tests.helpers.constraints import PERSON, grammar
from tests.helpers.tokenizers import large_byte_level

SIZE = 128_256
GRAMMARS = {
    "schema": grammar(json_schema=PERSON),
    "object": grammar(json_object=True),
    "choices": grammar(choices=["positive", "negative", "neutral"]),
    "words": grammar(regex="[A-Za-z]+( [A-Za-z]+){2,9}"),
    "text": grammar(regex="[^<>]{1,200}"),
    "lines": grammar(regex=r"([^\n]{1,80}\n){1,20}"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return large_byte_level(SIZE)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(
        tokenizer=tokenizer.to_str().encode(),
        num_tokens=SIZE,
        vocab_size=SIZE,
        eos_token_ids=[SIZE - 255],
    )


@pytest.fixture(scope="module")
def tokens(vocabulary: Vocabulary) -> GrammarTokens:
    return GrammarTokens(vocabulary)


def walked(tokens: GrammarTokens, text: str, steps: int) -> tuple[list[np.ndarray], list[float]]:
    """The masks along some text that the grammar allows, and the processor time of each."""
    found, choose = tokens.matcher(text), random.Random(1)
    masks, took_s = [], []
    for _ in range(steps):
        words = np.zeros(tokens.num_words, dtype=np.int32)
        began_s = time.thread_time()
        found.fill(words)
        took_s.append(time.thread_time() - began_s)
        masks.append(words)
        if found.is_complete:
            break
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        found.push([int(allowed[int(len(allowed) * choose.random() ** 3)])])
    return masks, took_s


@pytest.mark.parametrize("kind", GRAMMARS)
def test_the_parts_of_the_vocabulary_change_no_mask_and_plain_ones_are_ordinary(
    tokens: GrammarTokens, kind: str
) -> None:
    masks, took_s = walked(tokens, GRAMMARS[kind], 24)
    tokenizer = tokens.tokenizer
    tokens.tokenizer = tokenizer.with_slices([])
    try:
        alone, _ = walked(tokens, GRAMMARS[kind], 24)
    finally:
        tokens.tokenizer = tokenizer
    assert len(alone) == len(masks) > 1
    for one, other in zip(alone, masks, strict=True):
        np.testing.assert_array_equal(one, other)
    # A busy machine may double the time of some, but not of most.
    assert np.median(took_s) < mask_cpu_s(SIZE)


def test_letters_are_not_looked_at_one_by_one(tokens: GrammarTokens) -> None:
    """Against llguidance's own parts, in turns."""
    ours = tokens.tokenizer
    theirs = ours.with_slices(LLTokenizer.general_slices())
    best = {ours: 1.0, theirs: 1.0}
    try:
        for _ in range(5):
            for each in best:
                tokens.tokenizer = each
                _, took_s = walked(tokens, GRAMMARS["text"], 12)
                best[each] = min(best[each], sum(took_s))
    finally:
        tokens.tokenizer = ours
    assert best[ours] < 0.7 * best[theirs], best


def test_it_goes_over_the_channel_as_it_is(vocabulary: Vocabulary) -> None:
    assert decode_to_engine(encode(vocabulary)) == vocabulary


def test_a_trial_has_room_beside_the_tokenizer(vocabulary: Vocabulary) -> None:
    trials = Trials(vocabulary)
    try:
        verdicts = {kind: trials.check(text) for kind, text in GRAMMARS.items()}
        schema = {"type": "object", "properties": {f"k{i}": PERSON for i in range(200)}}
        verdicts["large"] = trials.check(grammar(json_schema=schema))
    finally:
        trials.close()
    assert not {kind: each for kind, each in verdicts.items() if each.reason}
