"""Engines of several ranks on gloo, against transformers + peft in float32 and against one rank."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dataplane.channel import Unload
from dataplane.errors import NonFiniteOutputError
from tests.dataplane.engine import test_activated, test_vocabulary
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig, adapter_of
from tests.helpers.models import TARGETS, TARGETS_OF, VOCAB, add_adapter, make_model, save_model
from tests.helpers.waiting import until

ADAPTERS: list[tuple[str, int, dict[str, object]]] = [
    ("qv", 1, {}),
    ("attention", 3, {"use_rslora": True}),
    ("mlp", 8, {"layers_to_transform": [0, 2]}),
    ("all-linear", 16, {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 7}}),
    ("with-head", 8, {}),
]
NEW_TOKENS = 8
TOLERANCE = 1e-4
NUM_PAGES = 600
MAX_BATCH_TOKENS = 48  # less than the prompts together, and than the longest one


class Setting(NamedTuple):
    reference: PeftModel
    paths: list[Path]
    model_dir: Path
    rig: Rig


def open_setting(
    model: PreTrainedModel,
    size: int,
    folder: Path,
    targets_by_name: dict[str, list[str] | str] = TARGETS,
) -> Setting:
    model_dir = save_model(model, folder / "model")
    reference: PreTrainedModel | PeftModel = model
    paths: list[Path] = []
    for index, (targets, rank, config) in enumerate(ADAPTERS):
        path = folder / f"adapter{index}"
        modules = targets_by_name[targets]
        reference = add_adapter(
            reference, path.name, path, rank=rank, target_modules=modules, seed=index, **config
        )
        paths.append(path)
    assert isinstance(reference, PeftModel)
    return Setting(reference, paths, model_dir, open_rig(model_dir, size))


def open_rig(model_dir: Path, size: int) -> Rig:
    return Rig(
        model_dir, num_pages=NUM_PAGES, max_batch_tokens=MAX_BATCH_TOKENS, tensor_parallel=size
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    # A vocabulary that two ranks do not share evenly.
    model = make_model("llama", vocab_size=VOCAB + 1)
    setting = open_setting(model, 2, tmp_path_factory.mktemp("llama"))
    yield setting
    setting.rig.close()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = random.Random(1)
    return [[generator.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


@torch.no_grad()
def reference_logits(model: PeftModel, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    if adapter is None:
        with model.disable_adapter():
            return model(input_ids=ids).logits[0]
    model.set_adapter(adapter.name)
    return model(input_ids=ids).logits[0]


def check(setting: Setting, lengths: tuple[int, ...] = (60, 1, 17, 5, 33, 60, 2, 21)) -> None:
    used = [None, *setting.paths, None, setting.paths[3]][: len(lengths)]
    rig, prompts = setting.rig, prompts_of([*lengths])
    for handle, (prompt, path) in enumerate(zip(prompts, used, strict=True)):
        rig.submit(handle, prompt, path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    assert rig.failed == {}
    for handle, (prompt, path) in enumerate(zip(prompts, used, strict=True)):
        tokens = rig.tokens[handle]
        expected = reference_logits(setting.reference, path, [*prompt, *tokens[:-1]])
        expected = expected[len(prompt) - 1 :]
        torch.testing.assert_close(
            torch.stack(rig.logits[handle]), expected, rtol=0, atol=TOLERANCE
        )
        assert expected.argmax(-1).tolist() == tokens


def test_llama_over_two_ranks_equals_peft(llama: Setting) -> None:
    check(llama)


def test_four_ranks_equal_peft_and_one_that_dies_is_missed(tmp_path: Path) -> None:
    """Biases, norms of queries and keys, and a tied head."""
    model = make_model(
        "qwen3", num_key_value_heads=4, attention_bias=True, tie_word_embeddings=True
    )
    setting = open_setting(model, 4, tmp_path)
    rig = setting.rig
    try:
        check(setting, (50, 17, 2, 9, 20))
        # There is nothing to do, so that nobody waits for it.
        assert rig.ranks is not None and rig.lost == []
        os.kill(rig.ranks.pids[-1], signal.SIGKILL)
        until(lambda: rig.lost != [])
        assert [each.partition(" (")[0] for each in rig.lost] == ["rank 3"]
    finally:
        rig.close()
    assert len(rig.lost) == 1


def test_parallel_residuals_over_two_ranks_equal_peft(tmp_path: Path) -> None:
    """One sum over the ranks takes both; biases, the head's too, are added once."""
    setting = open_setting(make_model("phi"), 2, tmp_path, TARGETS_OF["phi"])
    try:
        check(setting, (50, 17, 2, 9, 20))
    finally:
        setting.rig.close()


def test_sampling_and_preemption_give_what_one_rank_gives(llama: Setting) -> None:
    rigs = [llama.rig, open_rig(llama.model_dir, 1)]
    paths = [None, *llama.paths]
    first = 1000
    for rig in rigs:
        for number, prompt in enumerate(prompts_of([40] * 24)):
            rig.submit(
                first + number,
                prompt,
                paths[number % len(paths)],
                max_tokens=150,
                temperature=0.9,
                top_p=0.95,
                seed=number,
                ignore_eos=True,
            )
        rig.run()
    ours, theirs = (
        {handle: tokens for handle, tokens in rig.tokens.items() if handle >= first} for rig in rigs
    )
    assert rigs[0].engine.stats().num_preemptions > 0
    assert ours == theirs


def test_ranks_follow_drafts(llama: Setting) -> None:
    plain, rig = open_rig(llama.model_dir, 1), llama.rig
    paths = [None, *llama.paths]
    for each in (plain, rig):
        if each is rig:
            answers = {1500 + handle: tokens for handle, tokens in plain.tokens.items()}
            force_drafts(rig, answers, most=4)
        for handle, prompt in enumerate(prompts_of([20] * 6)):
            first = 1500 if each is rig else 0
            asked = {"max_tokens": 24, "temperature": 0.9 * (handle % 2), "seed": handle}
            path = paths[handle % len(paths)]
            each.submit(first + handle, prompt, path, ignore_eos=True, **asked)
        each.run()
    assert {1500 + handle: rig.tokens[1500 + handle] for handle in plain.tokens} == answers
    stats = rig.engine.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    rig.engine._scheduler._drafting = None


def test_adapters_come_and_go(llama: Setting) -> None:
    """Pages of one that went are another's, or keys and values, on every rank."""
    rig = llama.rig
    generator = random.Random(2)
    before: dict[Path, list[int]] = {}
    for handle in range(2000, 2022):
        path = generator.choice(llama.paths)
        rig.submit(handle, [5, 6, 7, 8, 9], path, max_tokens=6, ignore_eos=True)
        if generator.random() < 0.5:
            rig.submit(handle + 500, [handle % 100 + 3] * 70, None, max_tokens=4, ignore_eos=True)
        rig.run()
        assert rig.tokens[handle] == before.setdefault(path, rig.tokens[handle])
        if generator.random() < 0.3:
            rig.engine.direct(Unload(adapter_of(path).digest, 0.0))
        elif generator.random() < 0.3:
            rig.engine.clear_idle()
    assert len(set(map(tuple, before.values()))) == len(before) == len(llama.paths)
    rig.engine.clear_idle()
    assert rig.engine.stats().pool_digests == []
    assert rig.ranks is not None
    ranks = rig.ranks
    until(lambda: ranks.num_copies == 0)  # host memory may have its own back


def test_embeddings_and_heads_of_adapters_equal_peft(llama: Setting, tmp_path: Path) -> None:
    references: list[PeftModel | PreTrainedModel] = []
    paths: list[Path | None] = []
    for seed, name in enumerate(("both-lora", "different-tokens", "embedding", "head", "both")):
        model = make_model("llama", vocab_size=VOCAB + 1)
        reference, path = test_vocabulary.adapter(
            model, tmp_path / name, seed=seed, **test_vocabulary.FEATURES[name]
        )
        references.append(reference)
        paths.append(path)
    test_vocabulary.check(llama.rig, references, paths, first_handle=5000)


def test_activated_adapters_over_two_ranks_equal_peft(tmp_path: Path) -> None:
    """Ranks are told of spans that begin in mid-prompt."""
    assets = test_activated.Assets(tmp_path)
    rig = open_rig(assets.model_dir, 2)
    jobs: list[tuple[str | None, list[int]]] = []
    for place in ("in the middle", "twice, in one block"):
        prompt = test_activated.PROMPTS[place]
        jobs += [(name, prompt) for name in ("wide", None, "plain")]
        jobs.append(("head", [*prompt[:20], 11, *prompt[21:]]))
    try:
        for handle, job in enumerate(jobs):
            assets.submit(rig, handle, *job)
        rig.run()
        for handle, job in enumerate(jobs):
            assets.check(rig, handle, *job)
    finally:
        rig.close()


def test_what_a_broken_adapter_left_in_pages_reaches_nobody(llama: Setting, tmp_path: Path) -> None:
    """Keys and values that are not finite, on every rank: zeroed before the page is another's."""
    rig = llama.rig
    broken = tmp_path / "broken"
    add_adapter(
        make_model("llama", vocab_size=VOCAB + 1),
        "broken",
        broken,
        rank=2,
        target_modules=["k_proj", "v_proj"],
        seed=1,
        size=1e60,
    )
    rig.submit(3000, [9, 8, 7], None, max_tokens=4, ignore_eos=True)
    rig.run()
    rig.engine.clear_idle()
    for handle in range(3001, 3005):
        rig.submit(handle, [handle % 50 + 3] * 45, broken, max_tokens=4)
    rig.run()
    assert all(isinstance(rig.failed.pop(each), NonFiniteOutputError) for each in range(3001, 3005))
    for handle in range(3010, 3014):
        rig.submit(handle, [9, 8, 7], None, max_tokens=4, ignore_eos=True)
    rig.run()
    assert rig.failed == {}
    assert {tuple(rig.tokens[each]) for each in range(3010, 3014)} == {tuple(rig.tokens[3000])}
