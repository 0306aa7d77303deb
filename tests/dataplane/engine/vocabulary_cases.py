"""Adapters that change embeddings and heads, and what peft makes of them in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
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
    rig: Rig,
    references: list[PeftModel | PreTrainedModel],
    paths: list[Path | None],
    *,
    first_handle: int = 0,
    repeated: int = 1,
) -> None:
    """One request for each of the paths, all at once. repeated: how often a prompt is said."""
    requests: list[tuple[int, list[int]]] = []
    for at, path in enumerate(paths):
        prompt = [3 + at % 3, 7, 90, 33, 64, 127, 5, 7][: 8 - at % 4] * repeated
        requests.append((first_handle + at, prompt))
        rig.submit(*requests[at], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    for (handle, prompt), reference, path in zip(requests, references, paths, strict=True):
        assert handle not in rig.failed, (path, rig.failed[handle])
        tokens = rig.tokens[handle]
        expected = expected_logits(reference, prompt, tokens)
        actual = torch.stack(rig.logits[handle])
        assert (actual - expected).abs().max() <= TOLERANCE, path
        assert expected.argmax(-1).tolist() == tokens, path


SOME = ["tokens", "embedding-lora", "both", "head-tokens", "plain"]


class Assets:
    """A tied or an untied model with some adapters, and what peft makes of them."""

    def __init__(self, root: Path, tied: bool) -> None:
        self.architecture = "qwen2" if tied else "llama"
        self.root = root
        self.tied = tied
        self.model_dir = save_model(self.model(), root / "model")
        made = [adapter(self.model(), root / name, **FEATURES[name]) for name in SOME]
        self.references: list[PeftModel | PreTrainedModel] = [self.model()]
        self.references += [reference for reference, _ in made]
        self.paths: list[Path | None] = [None, *(path for _, path in made)]

    def model(self) -> PreTrainedModel:
        return make_model(self.architecture, tie_word_embeddings=self.tied)

    def path(self, name: str) -> Path:
        return self.root / name


EMBED = "base_model.model.model.embed_tokens.weight"
HEAD = "base_model.model.lm_head.weight"


def put(path: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """None removes."""
    file = path / "adapter_model.safetensors"
    tensors = {**load_file(file), **{k: v for k, v in changes.items() if v is not None}}
    kept = {k: v.detach().clone() for k, v in tensors.items() if changes.get(k, v) is not None}
    save_file(kept, file)
