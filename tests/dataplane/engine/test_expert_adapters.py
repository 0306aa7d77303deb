"""Adapters on experts and routers in the engine, against transformers in float32: in both forms of
peft's files, beside others, in one batch."""

from __future__ import annotations

import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.helpers.engine import Rig
from tests.helpers.models import BASE_NAME, VOCAB, add_adapter, make_model, save_model

NEW_TOKENS = 24
TOLERANCE = 1e-4
ARCHITECTURES = ["mixtral", "qwen2-moe", "qwen3-moe"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
NEW_FORM: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"], "rank": 3},
    {"target_modules": [], "target_parameters": EXPERTS[:1], "rank": 5},
    {"target_modules": ["v_proj"], "target_parameters": EXPERTS[1:], "rank": 2},
    {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": [*EXPERTS, "gate.weight"],
        "rank": 4,
        "use_rslora": True,
        "rank_pattern": {"experts.down_proj": 6, "gate.weight": 2},
        "alpha_pattern": {"experts.gate_up_proj": 3},
    },
]
NAMES = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2")}
QWEN = ("mlp", "gate_proj", "up_proj", "down_proj")
_KEY = re.compile(r"base_model\.model\.(.*)\.lora_A\.weight")
_NUMBERED = re.compile(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(.*)")


def write_old_form(
    model: PreTrainedModel, architecture: str, path: Path, *, is_partial: bool = False, seed: int
) -> Path:
    """As peft saved it with transformers 4. is_partial: some experts, some at another rank."""
    torch.manual_seed(seed)
    block, gate, up, down = NAMES.get(architecture, QWEN)
    tensors: dict[str, torch.Tensor] = {}

    def add(module: str, num_in: int, num_out: int, rank: int = 4) -> None:
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = 0.15 * torch.randn(rank, num_in)
        tensors[f"{name}.lora_B.weight"] = 0.15 * torch.randn(num_out, rank)

    hidden = model.config.hidden_size
    for number, layer in enumerate(model.model.layers):
        name = f"model.layers.{number}"
        add(f"{name}.self_attn.q_proj", *reversed(layer.self_attn.q_proj.weight.shape))
        if not hasattr(layer.mlp, "experts"):
            continue
        count, _, inter = layer.mlp.experts.down_proj.shape
        if not is_partial:
            add(f"{name}.{block}.gate", hidden, count)
        for expert in (1, 3) if is_partial else range(count):
            for part, num_in, num_out in ((gate, hidden, inter), (up, hidden, inter)):
                rank = 7 if is_partial and (expert, part) == (1, gate) else 4
                add(f"{name}.{block}.experts.{expert}.{part}", num_in, num_out, rank)
            if not is_partial:
                add(f"{name}.{block}.experts.{expert}.{down}", inter, hidden)
    targets = ["q_proj", *(["gate", *(f"experts.{n}.{p}" for n in range(9) for p in (gate, up))])]
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_NAME,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "gate", gate, up, down],
    }
    if is_partial:
        fields["target_modules"] = ["q_proj", *(t for t in targets if re.search(r"\.[13]\.", t))]
        fields |= {"use_rslora": True, "rank_pattern": {f"experts.1.{gate}": 7}}
    elif architecture != "mixtral":  # dense layers' and the shared expert's have the same names
        fields["target_modules"] = rf".*(q_proj|gate|experts\.\d+\.({gate}|{up}|{down}))"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(fields))
    return path


@torch.no_grad()
def merged(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """What an old file means: the model with each matrix changed, one after the other."""
    fields = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    for name, a in tensors.items():
        found = _KEY.fullmatch(name)
        if not found:
            continue
        root = 0.5 if fields.get("use_rslora") else 1.0
        scaling = fields["lora_alpha"] / len(a) ** root
        delta = scaling * tensors[name.replace("lora_A", "lora_B")] @ a
        numbered = _NUMBERED.fullmatch(found[1])
        if numbered is None:
            module = model.get_submodule(found[1].replace("block_sparse_moe", "mlp"))
            module.weight += delta
            continue
        experts = model.get_submodule(f"{numbered[1]}.mlp.experts")
        inter = experts.down_proj.shape[2]
        expert, part = int(numbered[2]), numbered[3]
        if part in ("w2", "down_proj"):
            experts.down_proj[expert] += delta
        else:
            start = 0 if part in ("w1", "gate_proj") else inter
            experts.gate_up_proj[expert, start : start + inter] += delta
    return model


def loaded(model: PreTrainedModel, path: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, path).eval()


@torch.no_grad()
def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_both_forms_equals_transformers(
    architecture: str, device: str, tmp_path: Path
) -> None:
    model_dir = save_model(make_model(architecture), tmp_path / "model")
    references: list[Any] = [make_model(architecture)]
    paths: list[Path | None] = [None]
    for index, config in enumerate(NEW_FORM):
        paths.append(path := tmp_path / f"new{index}")
        model = make_model(architecture)
        references.append(add_adapter(model, path.name, path, seed=index, **config))
    for is_partial in (False, True):
        model = make_model(architecture)
        path = tmp_path / f"old{is_partial}"
        paths.append(write_old_form(model, architecture, path, is_partial=is_partial, seed=9))
        references.append(merged(model, path))
    rig = Rig(model_dir, num_pages=3000, device=device)
    generator = random.Random(1)
    prompts = [[generator.randrange(3, VOCAB) for _ in range(n)] for n in (5, 1, 40, 17, 60, 3, 9)]
    for handle, path in enumerate(paths):
        rig.submit(handle, prompts[handle], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    seen: set[tuple[int, ...]] = set()
    for handle, (prompt, model) in enumerate(zip(prompts, references, strict=True)):
        assert handle not in rig.failed, rig.failed[handle]
        tokens = rig.tokens[handle]
        expected = logits_of(model, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        actual = torch.stack(rig.logits[handle])
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
        plain = logits_of(references[0], [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        assert handle == 0 or not torch.allclose(plain, expected, atol=0.1)
        seen.add(tuple(tokens))
    assert len(seen) == len(prompts)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3-moe"])
def test_an_old_file_means_what_peft_makes_of_it(architecture: str, tmp_path: Path) -> None:
    """Of Qwen2-MoE, and of layers without experts, the installed peft loses what it loads."""
    changes = {"mlp_only_layers": []} if architecture == "qwen3-moe" else {}
    path = write_old_form(make_model(architecture, **changes), architecture, tmp_path / "a", seed=2)
    if architecture == "qwen3-moe":  # as peft finds names in a list
        fields = json.loads((path / "adapter_config.json").read_text())
        fields["target_modules"] = ["q_proj", "gate", *QWEN[1:]]
        (path / "adapter_config.json").write_text(json.dumps(fields))
    tokens = list(range(5, 60))
    by_peft = logits_of(loaded(make_model(architecture, **changes), path), tokens)
    by_hand = logits_of(merged(make_model(architecture, **changes), path), tokens)
    torch.testing.assert_close(by_peft, by_hand, rtol=0, atol=TOLERANCE)
