"""All layers as one program against the same ops called one by one: the same numbers to the bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.cpu.program import COUNTERS
from kernels.layers.phases import LORA_PHASES, Phase
from kernels.linear import cpu as linear
from kernels.lora import cpu as lora
from tests.helpers.engine import Rig
from tests.helpers.models import VOCAB, add_adapter, make_model, save_model

pytestmark = pytest.mark.skipif(not linear.is_best(), reason="for AVX-512 without AMX")

OWN_NAMES = {
    "starcoder2": {"down_proj": "c_proj", "up_proj": "c_fc"},
    "phi": {"o_proj": "dense", "down_proj": "fc2", "up_proj": "fc1"},
}
ADAPTERS = [("q_proj", 3), ("v_proj", 8), ("o_proj", 5), ("down_proj", 64), ("up_proj", 16)]


@pytest.mark.parametrize(
    "architecture",
    [
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"),
        *("granite", "seed-oss", "smollm3", "olmo2", "olmo3"),
        *("cohere", "cohere2", "starcoder2", "phi", "nemotron", "exaone4"),
    ],
)
def test_equals_ops_one_by_one(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture, intermediate_size=128)  # of whole panels without a gate, too
    model_dir = save_model(model, tmp_path / "model")
    paths: list[Path | None] = [None]
    for target, rank in ADAPTERS:
        target = OWN_NAMES.get(architecture, {}).get(target, target)
        path = tmp_path / target
        modules = [target, "lm_head"] if rank == 5 else [target]
        add_adapter(model, target, path, rank=rank, target_modules=modules, seed=rank)
        paths.append(path)
    logits = []
    for with_stack in (True, False):
        rng = random.Random(0)
        rig = Rig(model_dir, dtype=torch.bfloat16, max_batch_tokens=64)
        decoder = rig.engine._decoder
        assert decoder._stack is not None
        if not with_stack:
            decoder._stack = None
        for handle, path in enumerate([*paths, *paths]):
            # Prefill and decode of many lengths in one batch, some prompts in several chunks.
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 2, 30, 90)))]
            rig.submit(handle, prompt, path, max_tokens=rng.randrange(1, 12), ignore_eos=True)
        rig.run()
        assert len(rig.finished) == 2 * len(paths)
        logits.append({handle: torch.stack(rows) for handle, rows in rig.logits.items()})
    with_stack, without = logits
    assert with_stack.keys() == without.keys()
    for handle, rows in without.items():
        assert torch.equal(with_stack[handle], rows), handle


def test_waits_for_every_layer_in_order(tmp_path: Path) -> None:
    rig = Rig(save_model(make_model("llama"), tmp_path / "model"), dtype=torch.bfloat16)
    waited: list[int] = []
    build = rig.engine._batches.build

    def waiting(chunks):
        batch = build(chunks)
        object.__setattr__(batch, "wait", waited.append)
        return batch

    rig.engine._batches.build = waiting  # pyright: ignore[reportAttributeAccessIssue]
    rig.submit(0, [5, 6, 7], max_tokens=2, ignore_eos=True)
    rig.run()
    assert waited == [0, 1, 2] * 2


def test_tells_lora_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one group is told shows whether anything that all are told was moved."""
    model = make_model("llama")
    model_dir = save_model(model, tmp_path / "model")
    for seed, name in enumerate("ab"):
        targets = ["q_proj", "o_proj"]
        add_adapter(model, name, tmp_path / name, rank=8, target_modules=targets, seed=seed)
    rig = Rig(model_dir, dtype=torch.bfloat16, pipeline_depth=1)
    stack = rig.engine._decoder._stack
    assert stack is not None
    arguments = lora.lora_arguments
    calls: list[tuple[Any, ...]] = []
    answers: list[tuple[int, ...]] = []

    def noting(*values: Any) -> tuple[int, ...]:
        calls.append(values)
        answers.append(arguments(*values))
        return answers[-1]

    monkeypatch.setattr(lora, "lora_arguments", noting)

    def step() -> int:
        before = len(calls)
        rig.step()
        return len(calls) - before

    rig.submit(0, [5, 6, 7], tmp_path / "a", max_tokens=20, ignore_eos=True)
    assert [step(), step(), step(), step()] == [4, 4, 1, 1]  # the prompt, then the same row
    # Another stack's greater ranks move the scratch that all share.
    common, max_rank, *others = calls[-1]
    arguments(common, 1000 * max_rank, *others)
    assert [step(), step()] == [4, 1]
    _, told_o, _, told_down, _ = answers[-5:]
    for phase, told in ((Phase.LORA_O, told_o), (Phase.LORA_DOWN, told_down)):
        own = [at for at in range(COUNTERS, len(told)) if at not in (lora.PAGES, lora.PLANS)]
        assert (stack._program.arguments[:, phase, own] == np.array(told)[own]).all()
    rig.submit(1, [5, 6, 7], max_tokens=2, ignore_eos=True)
    assert step() == 4  # other rows
    rig.submit(2, [5, 6, 7], tmp_path / "b", max_tokens=2, ignore_eos=True)
    assert step() == 4  # another adapter
    rig.run()
    calls.clear()
    rig.submit(3, [5, 6, 7], max_tokens=3, ignore_eos=True)
    rig.run()
    assert not calls and not stack._program.workers[:, LORA_PHASES].any()
    rig.submit(4, [5], tmp_path / "a", max_tokens=2, ignore_eos=True)
    rig.run()
    assert len(calls) == 5 and stack._program.workers[:, [Phase.LORA_QKV, Phase.LORA_O]].all()
