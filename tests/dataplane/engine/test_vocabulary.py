"""Adapters that change embeddings and heads, against transformers + peft in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tests.helpers.engine import Rig
from tests.helpers.models import add_adapter, make_model, save_model

Q = ["q_proj", "down_proj"]
TOKENS = [90, 7, 33, 5]  # in no order; prompts have some of them
NEW_TOKENS = 12
TOLERANCE = 1e-4

FEATURES: dict[str, dict[str, object]] = {
    "plain": {"target_modules": Q},
    "embedding-lora": {"target_modules": [*Q, "embed_tokens"]},
    "only-embedding-lora": {"target_modules": ["embed_tokens"], "use_rslora": True},
    "both-lora": {
        "target_modules": "(.*_proj|lm_head|.*embed_tokens)",
        "rank_pattern": {"embed_tokens": 3},
        "alpha_pattern": {"embed_tokens": 5},
    },
    "tokens": {"target_modules": Q, "trainable_token_indices": TOKENS},
    "tokens-and-head-lora": {
        "target_modules": [*Q, "lm_head"],
        "trainable_token_indices": TOKENS,
    },
    "tokens-and-head-dora": {
        "target_modules": [*Q, "lm_head"],
        "trainable_token_indices": TOKENS,
        "use_dora": True,
    },
    "head-tokens": {"target_modules": Q, "trainable_token_indices": {"lm_head": [100, 3, 50]}},
    "different-tokens": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [100, 3]},
    },
    "equal-tokens": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS},
    },
    "embedding": {"target_modules": Q, "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "both": {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
    "both-ensured": {
        "target_modules": Q,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "embedding-and-head-lora": {
        "target_modules": [*Q, "lm_head"],
        "modules_to_save": ["embed_tokens"],
        "use_dora": True,
    },
    "head-and-embedding-lora": {
        "target_modules": [*Q, "embed_tokens"],
        "modules_to_save": ["lm_head"],
    },
}


def adapter(
    model: PreTrainedModel, path: Path, *, seed: int = 0, **config: object
) -> tuple[PeftModel, Path]:
    config = {"target_modules": Q, **config}
    return add_adapter(model, path.name, path, rank=6, seed=seed, size=0.15, **config), path


@torch.no_grad()
def expected_logits(model: PeftModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    return model(input_ids=ids).logits[0, len(prompt) - 1 :]


def check(
    rig: Rig, references: list[PeftModel | PreTrainedModel], paths: list[Path | None]
) -> None:
    prompts = [[3 + at, 7, 90, 33, 64, 127, 5, 7][: 8 - at % 4] for at in range(len(paths))]
    for handle, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        rig.submit(handle, prompt, path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    for handle, (reference, prompt) in enumerate(zip(references, prompts, strict=True)):
        assert handle not in rig.failed, (paths[handle], rig.failed[handle])
        tokens = rig.tokens[handle]
        expected = expected_logits(reference, prompt, tokens)
        actual = torch.stack(rig.logits[handle])
        assert (actual - expected).abs().max() <= TOLERANCE, paths[handle]
        assert expected.argmax(-1).tolist() == tokens, paths[handle]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("qwen2", True), ("gemma3", True)]
)
def test_all_features_in_one_batch_equal_peft(
    architecture: str, tied: bool, device: str, tmp_path: Path
) -> None:
    """Gemma scales embeddings."""

    def model() -> PreTrainedModel:
        return make_model(architecture, tie_word_embeddings=tied)

    model_dir = save_model(model(), tmp_path / "model")
    references: list[PeftModel | PreTrainedModel] = [model()]
    paths: list[Path | None] = [None]
    for seed, (name, config) in enumerate(FEATURES.items()):
        if tied and name == "tokens-and-head-dora":
            continue  # peft fails on it
        reference, path = adapter(model(), tmp_path / name, seed=seed, **config)
        references.append(reference)
        paths.append(path)
    rig = Rig(model_dir, num_pages=3000, device=device)
    check(rig, [*references, references[2]], [*paths, paths[2]])
    assert rig.engine.stats().num_graph_steps == 0
