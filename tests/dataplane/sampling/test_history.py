"""A growing list of tokens as an array."""

from __future__ import annotations

import random

from dataplane.sampling.history import History


def test_the_array_is_the_list_however_it_grows() -> None:
    rng, history, tokens = random.Random(1), History(), list[int]()
    assert history.of(tokens).tolist() == []
    for _ in range(200):
        tokens += [rng.randrange(1 << 40) for _ in range(rng.choice([0, 1, 1, 1, 50]))]
        assert history.of(tokens).tolist() == tokens


def test_only_what_is_new_is_converted() -> None:
    class Watched(list[int]):
        num_read = 0

        def __getitem__(self, index):  # pyright: ignore
            found = super().__getitem__(index)
            if isinstance(index, slice):
                self.num_read += len(found)
            return found

    history, tokens = History(), Watched(range(1000))
    history.of(tokens)
    for token in range(10):
        tokens.append(token)
        history.of(tokens)
    assert tokens.num_read == 1010
