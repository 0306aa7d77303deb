"""Log-probabilities of prompts, against transformers + peft in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from dataplane.channel import TokenLogprobs
from dataplane.engine import scheduler
from dataplane.errors import NonFiniteOutputError
from tests.helpers.constraints import demo_vocabulary, grammar
from tests.helpers.engine import Rig
from tests.helpers.models import TARGETS, VOCAB, add_adapter, make_model, save_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = 1e-4
LONG = [int(each) for each in np.random.default_rng(5).integers(3, VOCAB, size=90)]
SHORT = LONG[40:50]


@dataclass
class World:
    reference: PeftModel
    model_dir: Path
    adapters: dict[str, Path]

    def check(self, scores: list[TokenLogprobs], prompt: list[int], name: str, most: int) -> None:
        """Against the reference's."""
        with torch.no_grad():
            if name:
                self.reference.set_adapter(name)
                logits = self.reference(torch.tensor([prompt])).logits[0]
            else:
                with self.reference.disable_adapter():
                    logits = self.reference(torch.tensor([prompt])).logits[0]
        expected = logits.log_softmax(-1)
        assert len(scores) == len(prompt) - 1
        for at, score in enumerate(scores):
            row = expected[at]
            assert score.logprob == pytest.approx(float(row[prompt[at + 1]]), abs=TOLERANCE)
            assert len(score.top_ids) == len(score.top_logprobs) == most
            best = row.topk(most).values if most else torch.empty(0)
            assert score.top_logprobs == pytest.approx(best.tolist(), abs=TOLERANCE)
            told = row[torch.tensor(score.top_ids, dtype=torch.int64)]
            assert told.tolist() == pytest.approx(score.top_logprobs, abs=TOLERANCE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("scores")
    model = make_model("llama")
    model_dir = save_model(model, folder / "model")
    reference: Any = model
    adapters: dict[str, Path] = {}
    for seed, targets in enumerate(("attention", "with-head")):
        name = f"adapter{seed}"
        adapters[name] = folder / name
        reference = add_adapter(
            reference, name, adapters[name], rank=8, target_modules=TARGETS[targets], seed=seed
        )
    return World(reference.eval(), model_dir, adapters)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_batch_tokens", [512, 24])
def test_scores_equal_peft_in_any_batch(world: World, device: str, max_batch_tokens: int) -> None:
    rig = Rig(world.model_dir, device=device, max_batch_tokens=max_batch_tokens)
    asked: list[tuple[list[int], str, int]] = []
    for name in ("", *world.adapters):
        for prompt, most in ((LONG, 0), (SHORT, 3), (LONG[:33], -1), (SHORT[:1], 2)):
            rig.submit(
                len(asked),
                prompt,
                world.adapters.get(name),
                max_tokens=3,
                prompt_logprobs=most,
                ignore_eos=True,
            )
            asked.append((prompt, name, most))
    rig.run()
    assert not rig.failed
    for handle, (prompt, name, most) in enumerate(asked):
        if most < 0:
            assert rig.prompt_logprobs[handle] == []
        else:
            world.check(rig.prompt_logprobs[handle], prompt, name, most)
    alone = Rig(world.model_dir, device=device)
    for handle, (prompt, name, _) in enumerate(asked):
        alone.submit(handle, prompt, world.adapters.get(name), max_tokens=3, ignore_eos=True)
    alone.run()
    assert alone.tokens == rig.tokens, "who is scored gets the tokens that it would get"


def test_what_a_prefix_cache_has_is_computed_for_scores(world: World) -> None:
    rig = Rig(world.model_dir)
    for handle in range(3):
        rig.submit(handle, LONG, prompt_logprobs=1 if handle else -1)
        rig.run()
        num_hits = rig.engine.stats().num_prefix_hit_tokens
        assert num_hits == 0
    assert rig.prompt_logprobs[1] == rig.prompt_logprobs[2]
    world.check(rig.prompt_logprobs[1], LONG, "", 1)
    rig.submit(3, LONG)
    rig.run()
    assert rig.engine.stats().num_prefix_hit_tokens > 0, "it is left there for others"


def test_scores_outlast_preemptions(world: World) -> None:
    rig = Rig(world.model_dir, num_pages=14, page_tokens=16, max_batch_tokens=16)
    for handle in range(3):
        rig.submit(
            handle,
            [*SHORT[: handle + 1], *LONG],
            arrival_s=float(handle),
            max_tokens=30,
            prompt_logprobs=0,
            ignore_eos=True,
        )
    rig.run()
    assert rig.engine.stats().num_preemptions > 0
    for handle in range(3):
        assert len(rig.tokens[handle]) == 30
        world.check(rig.prompt_logprobs[handle], [*SHORT[: handle + 1], *LONG], "", 0)


def test_a_step_scores_no_more_rows_than_it_may(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_ROWS", 20)
    rig = Rig(world.model_dir)
    most: list[int] = []
    forward = rig.engine._decoder.forward

    def counting(batch: Any, *rest: Any) -> torch.Tensor:
        most.append(len(batch.logit_rows))
        return forward(batch, *rest)

    rig.engine._decoder.forward = counting  # pyright: ignore[reportAttributeAccessIssue]
    for handle in range(4):
        rig.submit(handle, LONG, max_tokens=2, prompt_logprobs=0)
    rig.submit(4, LONG, max_tokens=2)
    rig.run()
    assert max(most) <= 20 + 5 and sorted(rig.tokens) == list(range(5))
    for handle in range(4):
        world.check(rig.prompt_logprobs[handle], LONG, "", 0)


def test_constrained_rows_beside_scored_ones(world: World) -> None:
    rig = Rig(world.model_dir)
    rig.engine.use_vocabulary(demo_vocabulary(VOCAB))
    digits = grammar(regex="[0-9]{8}")
    for handle in range(4):
        rig.submit(
            handle,
            LONG[handle:],
            max_tokens=6,
            prompt_logprobs=2 if handle % 2 else -1,
            grammar=digits if handle > 1 else "",
            ignore_eos=True,
        )
    rig.run()
    assert not rig.failed
    for handle in (1, 3):
        world.check(rig.prompt_logprobs[handle], LONG[handle:], "", 2)


def test_ranks_score_together(world: World) -> None:
    rig = Rig(world.model_dir, tensor_parallel=2)
    try:
        for handle, name in enumerate(("", *world.adapters)):
            rig.submit(handle, LONG, world.adapters.get(name), max_tokens=2, prompt_logprobs=1)
        rig.run()
        for handle, name in enumerate(("", *world.adapters)):
            world.check(rig.prompt_logprobs[handle], LONG, name, 1)
    finally:
        rig.close()


def test_scores_that_are_no_numbers_end_their_request(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    add_adapter(
        make_model("llama"), "broken", broken, rank=2, target_modules=["k_proj"], seed=1, size=1e60
    )
    rig = Rig(world.model_dir)
    rig.submit(0, LONG, broken, prompt_logprobs=0)
    rig.submit(1, LONG, prompt_logprobs=0)
    rig.run()
    assert isinstance(rig.failed[0], NonFiniteOutputError) and 0 not in rig.tokens
    world.check(rig.prompt_logprobs[1], LONG, "", 0)
