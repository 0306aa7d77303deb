"""What a sequence is guessed to go on with, and how often that is right."""

from __future__ import annotations

import random

import pytest

from dataplane.engine.drafts import Drafts, agreed
from dataplane.sampling.sampler import Sampled


def drafts_of(tokens: list[int], max_length: int = 400) -> Drafts:
    drafts = Drafts(tokens, max_length)
    drafts.follow()
    return drafts


def last_place(tokens: list[int]) -> tuple[int, int]:
    """(what follows the last earlier one of the longest n-gram, its length); (-1, 0): none."""
    for count in (4, 3, 2):
        for place in range(len(tokens) - 1, count - 1, -1):
            if len(tokens) > count and tokens[place - count : place] == tokens[-count:]:
                return place, count
    return -1, 0


@pytest.mark.parametrize("at_once", [True, False])
def test_what_followed_the_last_place_of_the_longest_match(at_once: bool) -> None:
    dice = random.Random(3)
    for _ in range(60):
        tokens = [dice.randrange(5) for _ in range(dice.randrange(1, 50))]
        known = list(tokens) if at_once else tokens[:1]
        drafts = drafts_of(known)
        for token in tokens[len(known) :]:
            known.append(token)
            drafts.follow()
        place, count = last_place(tokens)
        if place < 0:
            assert drafts.chances(0, 4) == []
            continue
        if at_once or drafts._matched <= 4:  # else it keeps to a longer match
            assert drafts._source == place and drafts._matched == count
        source, size = drafts._source, len(tokens)
        assert tokens[source - 4 : source] == tokens[-4:] or drafts._matched < 4
        expected = list(tokens)
        for at in range(6):
            expected.append(expected[source + at])  # it goes on with what it said itself
        assert drafts.propose(0, 6) == expected[size:]
        assert drafts.propose(1, 5) == expected[size + 1 :]


def test_a_match_that_goes_on_is_kept_though_a_shorter_one_is_nearer() -> None:
    first, second = [1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7, 8, 11]
    tokens = [*first, 20, *second, 21, 1, 2, 3, 4]
    drafts = drafts_of(tokens)
    for token in (5, 6, 7, 8):
        tokens.append(token)
        drafts.follow()
    assert drafts.propose(0, 1) == [9]
    assert drafts_of(list(tokens)).propose(0, 1) == [11]


def test_chances_follow_what_was_right_and_longer_matches_count_by_themselves() -> None:
    dice = random.Random(1)
    tokens = [1, 2, 3]
    drafts = drafts_of(tokens, 4000)
    for token in range(100, 500):  # pairs come again, and never what followed them
        tokens += [7, 8, token]
        drafts.follow()
    tokens += [7, 8]
    drafts.follow()
    assert drafts.propose(0, 1) and drafts.chances(0, 4) == []
    passage = [dice.randrange(10_000, 20_000) for _ in range(40)]
    tokens += [*passage, 50, *passage]
    drafts.follow()
    tokens += [51, *passage[:20]]
    drafts.follow()
    chances = drafts.chances(0, 4)
    assert chances[0] > 0.9 and chances == sorted(chances, reverse=True)
    assert drafts.chances(1, 3) == pytest.approx(chances[1:])
    assert drafts.propose(0, 4) == passage[20:24]


def test_memory_is_bounded_and_the_last_tokens_of_a_long_text_are_found() -> None:
    dice = random.Random(2)
    tokens = [dice.randrange(50_000) for _ in range(100_000)]
    drafts = drafts_of(tokens, 1 << 20)
    assert drafts._places.itemsize * len(drafts._places) <= 1 << 18
    assert drafts_of([1], 8)._places.buffer_info()[1] <= 64
    tokens += tokens[-5000:-4990]
    drafts.follow()
    assert drafts.propose(0, 3) == tokens[-5000:-4997]  # as many tokens were appended
    tokens += [1, *tokens[10:20]]  # too long ago
    drafts.follow()
    assert drafts.chances(0, 3) == []


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [([5, 6, 7], [5, 6, 7]), ([5, 9, 7], [5, 9]), ([8, 6, 7], [8]), ([5, -1, 7], [5, -1])],
)
def test_sampled_tokens_count_up_to_the_first_that_is_not_its_draft(
    sampled: list[int], expected: list[int]
) -> None:
    taken = agreed((5, 6), [Sampled(each, None) for each in sampled])
    assert [each.token_id for each in taken] == expected
