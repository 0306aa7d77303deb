"""Random traffic in a small pool: requests that come, stop, are aborted and preempted, and get the
tokens that they would get in calm."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.engine import Rig
from tests.helpers.models import VOCAB


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    adapter: Path | None
    sampling: dict[str, Any]

    def submit(self, rig: Rig, handle: int) -> None:
        arrival_s = float(handle)
        rig.submit(handle, self.prompt, self.adapter, arrival_s=arrival_s, **self.sampling)


def random_requests(
    dice: random.Random, adapters: Mapping[str, Path], number: int
) -> Iterator[Request]:
    """adapters: "a" and "b". Each request is drawn when it is asked for."""
    for _ in range(number):
        sampling = random_request(dice)
        prompt, name = sampling.pop("prompt"), sampling.pop("adapter")
        yield Request(prompt, adapters[name] if name else None, sampling)


def random_request(dice: random.Random) -> dict[str, Any]:
    length = dice.randrange(1, 40)
    shared = [3 + 5 * at % 120 for at in range(length)]
    return {
        "prompt": dice.choice([shared, [dice.randrange(3, VOCAB) for _ in shared]]),
        "adapter": dice.choice([None, "a", "b"]),
        "max_tokens": dice.choice([1, 2, 12, 24, 40]),
        "min_tokens": dice.choice([0, 0, 4]),
        "temperature": dice.choice([0.0, 1.0]),
        "top_k": dice.choice([0, 30]),
        "seed": dice.randrange(100),
        "repetition_penalty": dice.choice([1.0, 1.0, 1.3]),
        "frequency_penalty": dice.choice([0.0, 0.0, 0.7]),
        "logprobs": dice.choice([-1, 2]),
        "stop_token_ids": dice.choice([(), (), tuple(range(3, VOCAB, 9))]),
    }


def meet_traffic(
    rig: Rig,
    requests: Iterable[Request],
    dice: random.Random,
    num_steps: Sequence[int] = (0, 0, 1, 5),
) -> tuple[list[Request], set[int]]:
    """Submits them, handles counted from 0, between steps and aborts, and runs to the end. Returns
    them, and who was aborted, or had ended by then. num_steps: what is drawn from after each."""
    asked: list[Request] = []
    aborted: set[int] = set()
    for handle, request in enumerate(requests):
        asked.append(request)
        request.submit(rig, handle)
        for _ in range(dice.choice(num_steps)):
            rig.step()  # proves integrity
        if dice.random() < 0.15:
            aborted.add(handle // 2)
            rig.engine.abort(handle // 2)
            rig.engine.check_integrity()
    rig.run()
    return asked, aborted


def check_traffic(rig: Rig, calm: Rig, aborted: set[int], num_pages: int) -> None:
    """rig: with so many pages, after `meet_traffic`. calm: has answered the same requests."""
    assert not rig.failed and not calm.failed
    for handle, expected in calm.tokens.items():
        told = rig.tokens.get(handle, [])
        if tie_at(rig, calm, handle):
            continue
        if handle in aborted:
            assert told == expected[: len(told)]
        else:
            assert told == expected
            assert rig.finished[handle] == calm.finished[handle]
        pairs = zip(rig.logprobs.get(handle, ()), calm.logprobs[handle], strict=False)
        assert all(a.logprob == pytest.approx(b.logprob, abs=1e-3) for a, b in pairs)
    assert all(len(rig.logprobs[h]) in (0, len(rig.tokens[h])) for h in rig.tokens)
    rig.engine.clear_idle()
    rig.engine.check_integrity()
    assert rig.pool.allocator.num_free == num_pages


def tie_at(one: Rig, other: Rig, handle: int) -> bool:
    """Whether a greedy request's answers part where two tokens are as good as each other: another
    batch rounds otherwise."""
    pairs = zip(one.tokens.get(handle, ()), other.tokens[handle], strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return False
    rows = one.logits[handle][at], other.logits[handle][at]
    best = rows[0].topk(2).values
    return torch.allclose(*rows, atol=1e-5) and bool(best[0] - best[1] < 1e-5)
