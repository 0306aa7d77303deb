"""Engines over models that see, with adapters trained on the whole of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.dataplane.engine.vocabulary_cases import FEATURES, adapter, check
from tests.dataplane.models.test_multimodal import silent
from tests.helpers.engine import Rig
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

PROMPT = list(range(20, 50))
SEES = ("model.vision_tower.", "model.multi_modal_projector.", "model.visual.")
TARGETED = [*TARGETS["with-head"], "qkv", "fc1", "linear_fc1"]


def logits_of(rig: Rig, paths: list[Path | None]) -> list[torch.Tensor]:
    for handle, path in enumerate(paths):
        rig.submit(handle, PROMPT, path, max_tokens=8, ignore_eos=True)
    rig.run()
    assert not rig.failed
    return [torch.stack(rig.logits[handle]) for handle in range(len(paths))]


def rewritten(path: Path, root: str, *, seeing: bool) -> Path:
    """An adapter as it would be named in other models that have this text part."""
    file = path / "adapter_model.safetensors"
    found: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        new = name.removeprefix("base_model.model.")
        if new.startswith(SEES):
            if seeing:
                found[name.replace("model.model.vi", "model.vi")] = value
            continue
        new = new.replace("model.language_model.", root)
        if root == "language_model.model.":
            new = new.replace("lm_head.", "language_model.lm_head.")
        found[f"base_model.model.{new}"] = value
    other = path.with_name(f"{path.name}-{root}{seeing}")
    other.mkdir()
    save_file(found, other / file.name)
    (other / "adapter_config.json").write_bytes((path / "adapter_config.json").read_bytes())
    return other


@pytest.mark.parametrize(
    "architecture", ["gemma3-vision", "mistral3", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
)
def test_names_and_what_sees_make_no_difference(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    path = tmp_path / "a"
    reference = add_adapter(model, "a", path, rank=4, target_modules=TARGETED, seed=5)
    names = load_file(path / "adapter_model.safetensors")
    assert any(
        name.startswith(tuple(f"base_model.model.{each}" for each in SEES)) for name in names
    )
    others = [
        rewritten(path, root, seeing=seeing)
        for root in ("model.language_model.", "language_model.model.", "model.")
        for seeing in (False, True)
        if root != "model." or not seeing or "qwen" in architecture
    ]
    first, *rest = logits_of(Rig(model_dir), [path, *others])
    reference.set_adapter("a")
    expected = reference(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    torch.testing.assert_close(first[0], expected.detach(), rtol=0, atol=1e-4)
    for each in rest:
        torch.testing.assert_close(each, first, rtol=0, atol=1e-5)


def test_embeddings_heads_and_tokens_equal_peft(tmp_path: Path) -> None:
    model_dir = save_model(make_model("gemma3-vision"), tmp_path / "model")
    made = [
        adapter(make_model("gemma3-vision"), tmp_path / name, seed=seed, **FEATURES[name])
        for seed, name in enumerate(("both-lora", "tokens", "both"))
    ]
    check(Rig(model_dir), [model for model, _ in made], [path for _, path in made])


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ],
)
def test_a_tie_in_doubt_is_no_ground_for_tied_tokens(
    config: dict[str, object], tmp_path: Path
) -> None:
    model_dir = save_model(make_model("mistral3"), tmp_path / "model")
    _, path = adapter(make_model("mistral3"), tmp_path / "a", **config)
    plain_model: PeftModel
    plain_model, plain = adapter(
        make_model("mistral3"), tmp_path / "b", target_modules=["q_proj", "embed_tokens"]
    )
    silent(model_dir)
    rig = Rig(model_dir)
    rig.submit(0, PROMPT, path, max_tokens=2)
    rig.run()
    assert "TYING_UNCLEAR" in str(vars(rig.failed[0]))
    assert "by its checkpoint it is not" in str(rig.failed[0])
    check(rig, [plain_model], [plain], first_handle=1)
