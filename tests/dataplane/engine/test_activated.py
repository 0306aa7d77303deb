"""Activated LoRAs against transformers + peft in float32, and what they share with the base."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dataplane.channel import Adapter, Sampling, Submit
from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.errors import AdapterRefusedError
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig, adapter_of, start_of
from tests.helpers.graphs import Recorder
from tests.helpers.models import (
    TARGETS,
    TARGETS_OF,
    VOCAB,
    add_adapter,
    make_model,
    save_model,
)

PAGE = 8
INVOCATION = [7, 9, 7]  # one that overlaps with itself
ADAPTERS: dict[str, tuple[str, int, dict[str, object]]] = {
    "wide": ("all-linear", 16, {"alora_invocation_tokens": INVOCATION}),
    "head": ("with-head", 4, {"alora_invocation_tokens": [11]}),
    "biased": ("attention", 3, {"alora_invocation_tokens": INVOCATION, "lora_bias": True}),
    "plain": ("all-linear", 8, {}),
}
NEW_TOKENS = 24
TOLERANCE = 1e-4


class Assets:
    def __init__(self, root: Path, architecture: str = "llama") -> None:
        model = make_model(architecture)
        self.model_dir = save_model(model, root / "model")
        self.paths: dict[str, Path] = {}
        targets_by_name = TARGETS_OF.get(architecture, TARGETS)
        for index, (name, (targets, rank, config)) in enumerate(ADAPTERS.items()):
            self.paths[name] = root / name
            model = add_adapter(
                model,
                name,
                self.paths[name],
                rank=rank,
                target_modules=targets_by_name[targets],
                seed=index,
                **config,
            )
        assert isinstance(model, PeftModel)
        self.reference = model

    @torch.no_grad()
    def logits(self, name: str | None, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """As peft computes them behind the prompt's last token, and behind the answer's but one."""
        tokens = [*prompt, *answer[:-1]]
        ids = torch.tensor([tokens])
        if name is None:
            with self.reference.disable_adapter():
                return self.reference(input_ids=ids).logits[0, len(prompt) - 1 :]
        self.reference.set_adapter(name)
        more: dict[str, object] = {}
        if adapter_of(self.paths[name]).invocation_tokens:  # of the prompt; a forward takes all
            more["alora_offsets"] = [len(tokens) - self.start(name, prompt)]
        return self.reference(input_ids=ids, **more).logits[0, len(prompt) - 1 :]

    @torch.no_grad()
    def generated(self, name: str, prompt: list[int]) -> list[int]:
        """peft's own answer; it finds the invocation itself."""
        self.reference.set_adapter(name)
        ids = torch.tensor([prompt])
        done = self.reference.generate(
            input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
        return done[0, len(prompt) :].tolist()

    def start(self, name: str, prompt: list[int]) -> int:
        return start_of(adapter_of(self.paths[name]), prompt)

    def submit(
        self,
        rig: Rig,
        handle: int,
        name: str | None,
        prompt: list[int],
        max_tokens: int = NEW_TOKENS,
    ) -> None:
        path = self.paths[name] if name else None
        rig.submit(handle, prompt, path, max_tokens=max_tokens, ignore_eos=True)

    def check(self, rig: Rig, handle: int, name: str | None, prompt: list[int]) -> None:
        assert handle not in rig.failed, rig.failed[handle]
        tokens = rig.tokens[handle]
        expected = self.logits(name, prompt, tokens)
        assert expected.argmax(-1).tolist() == tokens, name
        actual = torch.stack(rig.logits[handle])
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return Assets(tmp_path_factory.mktemp("assets"))


def prompt_of(
    *places: int, length: int, wanted: list[int] = INVOCATION, seed: int = 0
) -> list[int]:
    """Random tokens, with the invocation at these places and nowhere else."""
    dice = random.Random(seed)
    tokens = [dice.randrange(12, VOCAB) for _ in range(length)]
    for place in places:
        tokens[place : place + len(wanted)] = wanted
    assert len(tokens) == length
    return tokens


PROMPTS = {
    "from the first token on": prompt_of(0, length=21),
    "in the middle": prompt_of(18, length=40, seed=1),
    "at a border of blocks": prompt_of(16, length=40, seed=2),
    "up to a border of blocks": prompt_of(13, length=40, seed=3),
    "at a border of chunks": prompt_of(24, length=60, seed=4),
    "at the end": prompt_of(32, length=35, seed=5),
    "in the last block, which is full": prompt_of(37, length=40, seed=6),
    "twice": prompt_of(5, 30, length=50, seed=7),
    "twice, in one block": prompt_of(24, 28, length=44, seed=8),
    "overlapping": [*prompt_of(17, length=20, seed=9), 9, 7, *prompt_of(length=10, seed=10)],
    "nothing else": INVOCATION,
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("max_batch_tokens", [24, 200])
def test_a_mixed_batch_equals_peft(assets: Assets, device: str, max_batch_tokens: int) -> None:
    """In chunks that end at, before and in the invocation, beside plain LoRA and the base."""
    rig = Rig(
        assets.model_dir,
        page_tokens=PAGE,
        max_batch_tokens=max_batch_tokens,
        max_running=16,
        num_pages=2000,
        device=device,
    )
    jobs: list[tuple[str | None, list[int]]] = []
    for at, prompt in enumerate(PROMPTS.values()):
        jobs.append((("wide", "biased")[at % 2], prompt))
    jobs.append(("head", prompt_of(20, 29, length=40, wanted=[11], seed=11)))
    jobs += [("plain", PROMPTS["twice"]), (None, PROMPTS["twice"]), ("wide", PROMPTS["twice"])]
    for handle, job in enumerate(jobs):
        assets.submit(rig, handle, *job)
    rig.run()
    for handle, job in enumerate(jobs):
        assets.check(rig, handle, *job)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "phi3", "mistral"])
def test_other_families_equal_peft(architecture: str, tmp_path: Path) -> None:
    family = Assets(tmp_path, architecture)
    rig = Rig(family.model_dir, page_tokens=PAGE, max_batch_tokens=32, max_running=8)
    jobs: list[tuple[str | None, list[int]]] = [
        ("wide", PROMPTS["in the middle"]),
        ("biased", PROMPTS["twice"]),
        ("head", prompt_of(20, length=40, wanted=[11], seed=11)),
        (None, PROMPTS["twice"]),
    ]
    for handle, job in enumerate(jobs):
        family.submit(rig, handle, *job)
    rig.run()
    for handle, job in enumerate(jobs):
        family.check(rig, handle, *job)


@pytest.mark.parametrize("place", PROMPTS)
def test_peft_finds_the_same_place(assets: Assets, place: str) -> None:
    """And the adapter makes a difference, also against one that applies to all tokens."""
    prompt = PROMPTS[place]
    rig = Rig(assets.model_dir, page_tokens=PAGE)
    assets.submit(rig, 0, "wide", prompt)
    rig.run()
    assert rig.tokens[0] == assets.generated("wide", prompt)
    base = assets.logits(None, prompt, rig.tokens[0])
    assert not torch.allclose(base, torch.stack(rig.logits[0]), atol=0.1)
    if start := assets.start("wide", prompt):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            everywhere = assets.reference(input_ids=ids, alora_offsets=[len(prompt)]).logits[0, -1]
        assert start and not torch.allclose(everywhere, rig.logits[0][0], atol=0.01)


def test_an_invocation_in_the_answer_changes_nothing(assets: Assets) -> None:
    """Nor after the data plane was lost and another one goes on with it."""
    prompt = PROMPTS["in the middle"]
    answer = [12, *INVOCATION, 13, 14]
    expected = assets.logits("wide", prompt, [*answer, 0])[-1]
    rig = Rig(assets.model_dir, page_tokens=PAGE, max_batch_tokens=16, max_running=8)
    rig.submit(0, prompt, assets.paths["wide"], generated=answer, max_tokens=10, ignore_eos=True)
    rig.run()
    torch.testing.assert_close(rig.logits[0][0], expected, rtol=0, atol=TOLERANCE)


def test_a_conversation_of_the_base_is_reused(assets: Assets) -> None:
    """The point of it all: keys and values of what comes before the invocation are the base's, so
    the base model, and any other activated LoRA, have computed them already."""
    rig = Rig(assets.model_dir, page_tokens=PAGE)
    talk = prompt_of(length=43)
    first = [*talk, *INVOCATION]
    assets.submit(rig, 0, None, [*talk, 40, 41])
    rig.run()
    cached: list[int] = []
    jobs: list[tuple[str | None, list[int]]] = [
        ("wide", first),  # 5 blocks of 8: the sixth has the invocation
        ("wide", [*first, 50, 51]),  # and its own sixth, which is full by then
        ("biased", first),  # another adapter with the same invocation
        ("head", [*talk, 11]),
        (None, [*talk, 42]),
        ("plain", first),  # computes all of it with its adapter
        ("plain", first),
    ]
    for handle, job in enumerate(jobs, 1):
        before = rig.engine.stats().num_prefix_hit_tokens
        assets.submit(rig, handle, *job)
        rig.run()
        cached.append(rig.engine.stats().num_prefix_hit_tokens - before)
        assets.check(rig, handle, *job)
    assert cached == [40, 40, 40, 40, 40, 0, 40]
    owners = {each for each in rig.engine.inspect(1).owners if each.startswith("prefix:")}
    names = ("wide", "biased", "head", "plain")
    digests = [adapter_of(assets.paths[name]).digest for name in names]
    assert owners == {"prefix:", *(f"prefix:{digest}" for digest in digests)}


def test_the_base_reuses_what_an_activated_adapter_computed(assets: Assets) -> None:
    rig = Rig(assets.model_dir, page_tokens=PAGE)
    talk = prompt_of(length=43)
    jobs: list[tuple[str | None, list[int]]] = [
        ("wide", [*talk, *INVOCATION]),
        (None, [*talk, *INVOCATION]),
        # The next turn: the answer before was the adapter's, and is the base's text now.
        ("wide", [*talk, *INVOCATION, *range(60, 80), *INVOCATION]),
    ]
    cached: list[int] = []
    for handle, job in enumerate(jobs):
        before = rig.engine.stats().num_prefix_hit_tokens
        assets.submit(rig, handle, *job)
        rig.run()
        cached.append(rig.engine.stats().num_prefix_hit_tokens - before)
        assets.check(rig, handle, *job)
    assert cached == [0, 40, 40]


def test_blocks_with_equal_tokens_and_another_start_are_not_shared(assets: Assets) -> None:
    """The second prompt has all tokens of the first one's block, and a later invocation in it."""
    block = [*INVOCATION, *INVOCATION, 20, 21]
    talk = prompt_of(length=16)
    rig = Rig(assets.model_dir, page_tokens=PAGE)
    late = [*talk, *block, 22]
    path = assets.paths["wide"]
    # A prompt that ends behind its first invocation, and an answer that has the second one.
    rig.submit(
        0, [*talk, *block[:3]], path, generated=[*block[3:], 22], max_tokens=9, ignore_eos=True
    )
    rig.run()
    for handle in (1, 2):
        assets.submit(rig, handle, "wide", late)
        rig.run()
        assets.check(rig, handle, "wide", late)
    assert rig.engine.stats().num_prefix_hit_tokens == 16 + 24


def test_prompt_scores_are_the_bases_up_to_the_invocation(assets: Assets) -> None:
    for name, wanted in (("head", [11]), ("wide", INVOCATION)):
        prompt = prompt_of(20, length=40, wanted=wanted, seed=12)
        rig = Rig(assets.model_dir, page_tokens=PAGE, max_batch_tokens=48, max_running=8)
        path = assets.paths[name]
        rig.submit(0, prompt, path, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
        assets.submit(rig, 1, None, PROMPTS["twice"])  # of which no logits are wanted
        rig.run()
        assets.check(rig, 1, None, PROMPTS["twice"])
        assets.reference.set_adapter(name)
        with torch.no_grad():
            logits = assets.reference(input_ids=torch.tensor([prompt])).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        actual = torch.tensor([each.logprob for each in rig.prompt_logprobs[0]])
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_preempted_and_drafting_sequences_equal_peft(assets: Assets) -> None:
    jobs: list[tuple[str | None, list[int]]] = [
        (("wide", "biased", None, "plain")[at % 4], prompt)
        for at, prompt in enumerate(PROMPTS.values())
    ]
    calm = Rig(assets.model_dir, page_tokens=PAGE, num_pages=2000)
    tight = Rig(
        assets.model_dir,
        page_tokens=PAGE,
        num_pages=56,
        max_batch_tokens=20,
        max_running=8,
        speculative_tokens=3,
    )
    for handle, job in enumerate(jobs):
        assets.submit(calm, handle, *job, max_tokens=60)
    calm.run()
    force_drafts(tight, calm.tokens)
    for handle, job in enumerate(jobs):
        assets.submit(tight, handle, *job, max_tokens=60)
    tight.run()
    stats = tight.engine.stats()
    assert stats.num_preemptions > 0, tight.failed
    assert stats.num_accepted_tokens > 0
    for handle, job in enumerate(jobs):
        assets.check(tight, handle, *job)


BUCKETS = GraphBuckets(
    sizes=(1, 2, 4), num_blocks=(4, 32), ranks=(16,), prompt_sizes=(48,), prompt_blocks=32
)


def test_captured_steps_give_the_same_tokens(assets: Assets) -> None:
    """A short prompt whose start is another model's is replayed, too."""
    replayed = Rig(assets.model_dir, graphs=Recorder().setup(BUCKETS), max_running=4)
    eager = Rig(assets.model_dir, max_running=4)
    prompts = [*PROMPTS.values()]
    for rig in (replayed, eager):
        for turn, names in enumerate([["wide"], ["wide", "wide"], ["wide", None, "plain", "wide"]]):
            for at, name in enumerate(names):
                prompt = prompts[(turn + at) % 3]
                assets.submit(rig, 10 * turn + at, name, prompt)
                rig.step()
            rig.run()
    assert replayed.tokens == eager.tokens
    stats = replayed.engine.stats()
    assert stats.num_graph_steps > 3 * (NEW_TOKENS - 1)


def test_a_step_in_which_an_adapter_begins_twice_is_not_replayed(assets: Assets) -> None:
    """Its pages, 31 each time, would be more than the pool has."""
    setup = Recorder().setup(BUCKETS)
    replayed = Rig(assets.model_dir, page_tokens=PAGE, graphs=setup, max_running=4, num_pages=56)
    eager = Rig(assets.model_dir, page_tokens=PAGE, max_running=4, num_pages=56)
    for rig in (replayed, eager):
        for turn, places in enumerate([(8,), (8, 9)]):
            for at, place in enumerate(places):
                prompt = prompt_of(place, length=20, seed=20 + turn)
                assets.submit(rig, 10 * turn + at, "wide", prompt, max_tokens=4)
            rig.run()
        assert rig.failed == {}
    assert replayed.tokens == eager.tokens
    assert replayed.engine.stats().num_graph_steps == 4 + 3


def test_a_ticket_that_does_not_know_of_the_invocation_is_refused(assets: Assets) -> None:
    """As of a control plane of an older version, which would have the adapter apply everywhere."""
    rig = Rig(assets.model_dir, page_tokens=PAGE)
    prompt = PROMPTS["twice"]
    known = adapter_of(assets.paths["wide"])
    unaware = Adapter(known.digest, known.source, known.name)
    assets.submit(rig, 0, "wide", prompt)
    sampling = Sampling(max_tokens=4, ignore_eos=True)
    rig.engine.submit(
        Submit(handle=1, prompt=prompt, sampling=sampling, adapter=unaware, arrival_s=0.0)
    )
    rig.run()
    assets.check(rig, 0, "wide", prompt)
    error = rig.failed[1]
    assert isinstance(error, AdapterRefusedError) and error.reason == "INVOCATION_UNKNOWN"
    assert 1 not in rig.tokens
