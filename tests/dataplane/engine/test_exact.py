"""On CPU, in bfloat16, an answer has the same bits whatever happens on the way.

Where a library multiplies, its results may depend on the number of tokens, so only with our GEMM.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataplane.engine import batch
from kernels.attention.metadata import AttentionMetadata, Queries, attention_metadata
from kernels.linear.cpu import is_best
from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, add_adapter, make_model, save_model

pytestmark = pytest.mark.skipif(not is_best(), reason="the base GEMM is a library's here")

PROMPT = [3 + (7 * at) % 120 for at in range(21)]
NUM_TOKENS = 40
SAMPLING = {"max_tokens": NUM_TOKENS, "ignore_eos": True}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    changes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = make_model("llama", **changes)
    paths = {"model": save_model(model, root / "model"), "a": root / "a"}
    model = add_adapter(model, "a", paths["a"], rank=8, target_modules=ATTENTION, seed=1)
    paths["activated"] = root / "activated"
    add_adapter(
        model,
        "activated",
        paths["activated"],
        rank=8,
        target_modules=ATTENTION,
        seed=2,
        alora_invocation_tokens=PROMPT[18:20],
    )
    return paths


def rig(assets: dict[str, Path], **options: int) -> Rig:
    return Rig(assets["model"], dtype=torch.bfloat16, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(assets: dict[str, Path]) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits."""
    made = rig(assets)
    made.submit(0, PROMPT, assets["a"], **SAMPLING)
    made.run()
    return made.tokens[0], made.logits[0]


def check(made: Rig, handle: int, alone: tuple[list[int], list[torch.Tensor]], first: int) -> None:
    tokens, logits = alone
    assert made.tokens[handle] == tokens[first:]
    for mine, others in zip(made.logits[handle], logits[first:], strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize("max_batch_tokens", [96, 10, 64])
@pytest.mark.parametrize("num_generated", [1, 17, NUM_TOKENS - 1])
def test_a_continued_answer(
    assets: dict[str, Path],
    alone: tuple[list[int], list[torch.Tensor]],
    num_generated: int,
    max_batch_tokens: int,
) -> None:
    made = rig(assets, max_batch_tokens=max_batch_tokens, max_running=8)
    generated = alone[0][:num_generated]
    made.submit(1, PROMPT, assets["a"], generated=generated, **SAMPLING)
    made.run()
    check(made, 1, alone, num_generated)


@pytest.mark.parametrize("max_batch_tokens", [8, 20])
def test_a_prompt_in_chunks_of_which_the_last_is_one_token(
    assets: dict[str, Path], alone: tuple[list[int], list[torch.Tensor]], max_batch_tokens: int
) -> None:
    made = rig(assets, max_batch_tokens=max_batch_tokens, max_running=8)
    made.submit(1, PROMPT, assets["a"], **SAMPLING)
    made.run()
    check(made, 1, alone, 0)


def test_a_prompt_of_which_all_but_one_token_is_cached(assets: dict[str, Path]) -> None:
    prompt = PROMPT[:17]  # two blocks of 8
    fresh, made = rig(assets), rig(assets)
    fresh.submit(0, prompt, assets["a"], **SAMPLING)
    fresh.run()
    made.submit(1, prompt[:-1], assets["a"], max_tokens=1)
    made.run()
    made.submit(2, prompt, assets["a"], **SAMPLING)
    made.run()
    assert made.engine.stats().num_prefix_hit_tokens == 16
    check(made, 2, (fresh.tokens[0], fresh.logits[0]), 0)


def test_a_beginning_that_the_base_model_has_computed(assets: dict[str, Path]) -> None:
    """What an activated adapter computes before its invocation are the base's bits."""
    fresh, made = rig(assets), rig(assets)
    fresh.submit(0, PROMPT, assets["activated"], **SAMPLING)
    fresh.run()
    made.submit(1, PROMPT[:17], None, max_tokens=3)
    made.run()
    made.submit(2, PROMPT, assets["activated"], **SAMPLING)
    made.run()
    assert made.engine.stats().num_prefix_hit_tokens == 16
    check(made, 2, (fresh.tokens[0], fresh.logits[0]), 0)


def test_preempted_answers(
    assets: dict[str, Path], alone: tuple[list[int], list[torch.Tensor]]
) -> None:
    made = rig(assets, num_pages=30)
    for handle in range(6):
        made.submit(handle, PROMPT, assets["a"] if handle % 2 else None, **SAMPLING)
    made.run()
    assert made.engine.stats().num_preemptions > 0
    for handle in (1, 3, 5):
        assert made.tokens[handle] == alone[0]


@pytest.mark.parametrize(("limit", "longest"), [(100, len(PROMPT) + 30), (1 << 20, len(PROMPT))])
def test_very_many_generated_tokens_are_computed_together(
    assets: dict[str, Path],
    alone: tuple[list[int], list[torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    longest: int,
) -> None:
    queries: list[Queries] = []

    def noted(of_step: list[Queries], *rest: torch.device) -> AttentionMetadata:
        queries.extend(of_step)
        return attention_metadata(of_step, *rest)

    monkeypatch.setattr(batch, "_MAX_KEYS_AGAIN", limit)
    monkeypatch.setattr(batch, "attention_metadata", noted)
    made = rig(assets)
    made.submit(1, PROMPT, assets["a"], generated=alone[0][:30], **SAMPLING)
    made.run()
    assert max(each.end - each.start for each in queries) == longest
    for mine, others in zip(made.logits[1], alone[1][30:], strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=0.2)
