"""The engine against transformers + peft in float32: every architecture, mixed adapters."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, TARGETS, VOCAB, add_adapter, make_model, save_model

ADAPTERS: list[tuple[str, int, dict[str, object]]] = [
    ("qv", 1, {}),
    ("attention", 3, {"use_rslora": True}),
    ("mlp", 8, {"layers_to_transform": [0, 2]}),
    ("all-linear", 16, {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 7}}),
    ("qv", 64, {}),
    ("all-linear", 256, {}),
    ("with-head", 8, {}),
    ("with-head", 64, {}),
]
NEW_TOKENS = 64
TOLERANCE = 1e-4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_mixed_batch_equals_peft(architecture: str, device: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    reference, paths = _with_adapters(model, tmp_path)
    rig = Rig(model_dir, num_pages=3000, device=device)
    generator = random.Random(1)
    prompts: dict[int, list[int]] = {}
    used: dict[int, Path | None] = {}
    for handle, path in enumerate([None, *paths, None, *paths[:3]]):
        length = generator.choice([1, 5, 17, 60, 130])
        prompts[handle] = [generator.randrange(3, VOCAB) for _ in range(length)]
        used[handle] = path
        rig.submit(handle, prompts[handle], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    for handle, prompt in prompts.items():
        tokens = rig.tokens[handle]
        assert len(tokens) == NEW_TOKENS
        expected = _reference_logits(reference, used[handle], [*prompt, *tokens[:-1]])
        expected = expected[len(prompt) - 1 :]
        actual = torch.stack(rig.logits[handle])
        assert expected.argmax(-1).tolist() == tokens, used[handle]
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_adapters_change_the_answer(tmp_path: Path) -> None:
    """What makes the test above worth something: no two of its adapters agree."""
    model = make_model("llama")
    model_dir = save_model(model, tmp_path / "model")
    _, paths = _with_adapters(model, tmp_path)
    rig = Rig(model_dir, num_pages=3000)
    for handle, path in enumerate([None, *paths]):
        rig.submit(handle, [5, 6, 7, 8], path, max_tokens=12, ignore_eos=True)
    rig.run()
    assert len({tuple(tokens) for tokens in rig.tokens.values()}) == len(paths) + 1


def test_biases_of_llama_and_eos(tmp_path: Path) -> None:
    model = make_model("llama", attention_bias=True, mlp_bias=True)
    model_dir = save_model(model, tmp_path / "model")
    reference = add_adapter(model, "a", tmp_path / "a", rank=4, target_modules=ATTENTION, seed=3)
    rig = Rig(model_dir)
    prompt = list(range(10, 40))
    rig.submit(0, prompt, tmp_path / "a", max_tokens=NEW_TOKENS)
    rig.run()
    tokens = rig.tokens[0]
    expected = _reference_logits(reference, tmp_path / "a", [*prompt, *tokens[:-1]])
    assert expected[len(prompt) - 1 :].argmax(-1).tolist() == tokens
    assert (tokens[-1] == 2) == (rig.finished[0] == "stop")
    assert 2 not in tokens[:-1]


def _with_adapters(model, tmp_path: Path) -> tuple[PeftModel, list[Path]]:
    paths: list[Path] = []
    for index, (targets, rank, config) in enumerate(ADAPTERS):
        path = tmp_path / f"adapter{index}"
        model = add_adapter(
            model,
            path.name,
            path,
            rank=rank,
            target_modules=TARGETS[targets],
            seed=100 + index,
            **config,
        )
        paths.append(path)
    return model, paths


@torch.no_grad()
def _reference_logits(model: PeftModel, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """[len(tokens), vocab] float32: the next-token logits after each prefix."""
    ids = torch.tensor([tokens])
    if adapter is None:
        with model.disable_adapter():
            return model(input_ids=ids).logits[0]
    model.set_adapter(adapter.name)
    return model(input_ids=ids).logits[0]
