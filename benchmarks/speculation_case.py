"""What drafts gain and cost: the engine benchmark's case about speculation.

Texts are the model's own: its embeddings outweigh its layers, and its head says after each token a
certain other one. So it goes round in passages of some tokens, and all that it computes takes what
it takes in any model of the shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.cases import Result, Setup
from benchmarks.load.workload import FIRST_TOKEN_ID
from benchmarks.models import write_model
from benchmarks.rounds import Case, Ratio, interleaved, judged
from benchmarks.session import Session, Times

DRAFTS = 4
STREAMS = (1, 4, 16)
PASSAGE_TOKENS = 48
_OUTWEIGHS = 1000.0
_FEW = 64  # tokens, of which every pair comes again and again
TEXTS: dict[str, dict[str, Any]] = {
    "copied": {},
    "not repeated": {
        "temperature": 1.0,
        "logit_bias": [(FIRST_TOKEN_ID + 7 * at, 100.0) for at in range(_FEW)],
    },
}
"""How each is sampled."""


@dataclass
class _Seen:
    """Of a case's turns."""

    times: list[Times] = field(default_factory=list[Times])
    processor: list[float] = field(default_factory=list[float])  # tokens for a second of it
    num_drafted: int = 0
    num_accepted: int = 0

    def forget(self) -> None:
        self.times.clear()
        self.processor.clear()
        self.num_drafted = self.num_accepted = 0


def speculation(setup: Setup) -> Result:
    """Streams of each text in an engine whose drafting is on and off by turns, as two engines
    differ by where their weights lie. Tokens for each second, and for each second of processor
    time, which other work on the machine changes less; what threads wait for each other is in that,
    too, so that it says most with one thread."""
    model = _passages_model(setup)
    seen: dict[str, _Seen] = {}
    with ExitStack() as stack:
        session = setup.session(stack, adapter_bytes=0, model=model, speculative_tokens=DRAFTS)
        turns: dict[str, Case] = {}
        ratios: list[Ratio] = []
        for text, sampling in TEXTS.items():
            for number in STREAMS:
                what = f"{text}, {number} streams"
                for is_on in (False, True):
                    case = f"{what}, {'with' if is_on else 'without'} drafts"
                    seen[case] = _Seen()
                    turn = _turn(setup, session, number, sampling, seen[case])
                    turns[case] = _switched(session, is_on, turn)
                least = 0.97 if text == "not repeated" else 1.3 if number <= 4 else None
                pair = f"{what}, with drafts", f"{what}, without drafts"
                ratios.append(Ratio(f"{what}: with drafts to without", *pair, at_least=least))
        for case, turn in turns.items():
            turn()
            seen[case].forget()
        rates = interleaved(turns, setup.rounds)
        processor = {case: each.processor for case, each in seen.items()}
        alike = [replace(each, name=f"{each.name}, processor", at_least=None) for each in ratios]
        facts = {
            "speculative_tokens": DRAFTS,
            "passage_tokens": PASSAGE_TOKENS,
            "output_tokens_per_processor_s": processor,
            "drafted_tokens": {case: each.num_drafted for case, each in seen.items()},
            "accepted_tokens": {case: each.num_accepted for case, each in seen.items()},
        }
        lines = [*judged(ratios, rates), *judged(alike, processor)]
        times = {case: each.times for case, each in seen.items()}
        return Result(session.parts.ready, rates, times, lines, facts)


def _switched(session: Session, is_on: bool, turn: Case) -> Case:
    """turn: with drafting, or as if the engine had been made without."""
    engine: Any = session.parts.engine
    drafting = engine._scheduler._drafting

    def switched() -> float:
        engine._scheduler._drafting = drafting if is_on else None
        engine._speculates = is_on
        return turn()

    return switched


def _turn(
    setup: Setup, session: Session, num_streams: int, sampling: dict[str, Any], seen: _Seen
) -> Case:
    def rate() -> float:
        before, before_s = session.parts.engine.stats(), time.process_time()
        times = session.closed_loop(
            [None] * num_streams,
            prompt_tokens=setup.prompt_tokens,
            new_tokens=setup.new_tokens,
            sampling=sampling,
            prompt_of=_passages(setup),
        )
        seen.processor.append(times.num_tokens / (time.process_time() - before_s))
        after = session.parts.engine.stats()
        seen.num_drafted += after.num_drafted_tokens - before.num_drafted_tokens
        seen.num_accepted += after.num_accepted_tokens - before.num_accepted_tokens
        seen.times.append(times)
        return times.tokens_per_s

    return rate


def _next_token(setup: Setup) -> list[int]:
    """Token -> the one that the model says after it."""
    vocab_size = setup.shape.vocab_size
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(vocab_size - FIRST_TOKEN_ID, generator=generator) + FIRST_TOKEN_ID
    following = list(range(vocab_size))
    for passage in order.split(PASSAGE_TOKENS):
        for token, after in zip(passage.tolist(), passage.roll(-1).tolist(), strict=True):
            following[token] = after
    return following


def _passages(setup: Setup) -> Callable[[int], list[int]]:
    """Prompts that go round in a passage, another one for each number."""
    following = _next_token(setup)

    def prompt_of(number: int) -> list[int]:
        tokens = [FIRST_TOKEN_ID + number % (len(following) - FIRST_TOKEN_ID)]
        while len(tokens) < setup.prompt_tokens:
            tokens.append(following[tokens[-1]])
        return tokens

    return prompt_of


def _passages_model(setup: Setup) -> Path:
    path = setup.folder / "passages"
    if path.exists():
        return path
    write_model(path, setup.shape)
    tensors = load_file(path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"].float()
    embedding /= embedding.norm(dim=1, keepdim=True)
    head = torch.empty_like(embedding)
    head[torch.tensor(_next_token(setup))] = embedding
    tensors["model.embed_tokens.weight"] = (_OUTWEIGHS * embedding).bfloat16()
    tensors["lm_head.weight"] = head.bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path
