"""The engine against transformers + peft in float32: every architecture, mixed adapters."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.helpers.engine import Rig
from tests.helpers.models import (
    ATTENTION,
    MLP,
    MORE_FAMILIES,
    TARGETS,
    TARGETS_OF,
    VOCAB,
    add_adapter,
    make_model,
    save_model,
)

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


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROPE_THETA = {"rope_theta": 100.0}  # small enough for scalings to matter in short contexts
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **ROPE_THETA}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    **ROPE_THETA,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.3, 2.0, 2.5],
    "long_factor": [9.0] * 4,
    **ROPE_THETA,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_mixed_batch_equals_peft(architecture: str, device: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    reference, paths = _with_adapters(model, tmp_path)
    _check_batch(reference, model_dir, [None, *paths, None, *paths[:3]], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "architecture",
    [
        *("gemma", "gemma2", "gemma3", "granite", "phi3", "seed-oss", "smollm3"),
        *("olmo2", "olmo3"),
        *("gemma3-vision", "mistral3", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"),
        *MORE_FAMILIES,
    ],
)
def test_other_families_equal_peft(architecture: str, device: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    targets = TARGETS_OF.get(architecture, TARGETS)
    adapters = [("qv", 3, {}), ("mlp", 8, {}), ("with-head", 16, {})]
    reference, paths = _with_adapters(model, tmp_path, adapters, targets)
    _check_batch(reference, model_dir, [None, *paths], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_mixtures_of_experts_equal_peft(architecture: str, device: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    # Of the others' MLPs PEFT takes the experts' whatever is asked for.
    mlp = MLP if architecture == "qwen2-moe" else ["o_proj"]
    targets: dict[str, list[str] | str] = {
        "qv": ["q_proj", "v_proj"],
        "mlp": mlp,
        "with-head": [*ATTENTION, *mlp, "lm_head"],
    }
    adapters = [
        ("qv", 3, {}),
        ("mlp", 8, {"use_rslora": True}),
        ("with-head", 16, {}),
        ("mlp", 4, {"use_dora": True}),
    ]
    reference, paths = _with_adapters(model, tmp_path, adapters, targets)
    _check_batch(reference, model_dir, [None, *paths], device)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **ROPE_THETA}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, **ROPE_THETA}}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3}}),
        (
            "phi3",
            {
                "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
                "original_max_position_embeddings": 224,
            },
        ),
        (
            "olmo3",
            {
                "rope_parameters": {
                    "full_attention": {**YARN, "attention_factor": 1.2},
                    "sliding_attention": {"rope_type": "default", **ROPE_THETA},
                },
                "attention_bias": True,
                "num_key_value_heads": 1,
            },
        ),
        ("olmo2", {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}),
        ("gemma3", {"num_hidden_layers": 6, "layer_types": None, "tie_word_embeddings": False}),
        ("gemma2", {"layer_types": ["full_attention"] * 4, "attn_logit_softcapping": None}),
        ("glm4", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.75}}),
        ("cohere", {"use_qk_norm": False, "attention_bias": True, "num_key_value_heads": 1}),
        ("cohere2", {"layer_types": None, "sliding_window_pattern": 2, "num_hidden_layers": 4}),
        ("phi", {"rope_parameters": {"partial_rotary_factor": 0.25, **ROPE_THETA}}),
        ("starcoder2", {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False}),
        ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": False}),
        ("nemotron", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("exaone4", {"layer_types": ["full_attention"] * 3, "sliding_window": None}),
    ],
)
def test_rope_scalings_and_variants(
    architecture: str, changes: dict[str, object], tmp_path: Path
) -> None:
    model = make_model(architecture, **changes)
    model_dir = save_model(model, tmp_path / "model")
    reference, paths = _with_adapters(
        model, tmp_path, [("all-linear", 8, {})], {"all-linear": "all-linear"}
    )
    _check_batch(reference, model_dir, [None, *paths], "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "architecture", ["qwen2", "llama", "phi3", "granite", "olmo3", "cohere", "phi"]
)
def test_dora_and_lora_bias_beside_plain_adapters(
    architecture: str, device: str, tmp_path: Path
) -> None:
    """qwen2 has base biases, which DoRA must leave as they are, phi one of its head, too; phi3 has
    fused projections."""
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    targets = TARGETS_OF.get(architecture, TARGETS)
    adapters = [
        ("all-linear", 8, {"use_dora": True, "use_rslora": True}),
        ("attention", 4, {}),
        ("qv", 4, {"use_dora": True, "layers_to_transform": [1]}),
        ("all-linear", 4, {"lora_bias": True}),
        ("with-head", 8, {"use_dora": True}),
        ("with-head", 8, {"lora_bias": True}),
    ]
    reference, paths = _with_adapters(model, tmp_path, adapters, targets)
    _check_batch(reference, model_dir, [None, *paths, paths[0]], device)


@pytest.mark.parametrize("device", DEVICES)
def test_trained_base_biases_beside_plain_adapters(device: str, tmp_path: Path) -> None:
    """peft takes one adapter with biases per model, so each has a reference of its own."""
    variants: list[tuple[str, dict[str, object]]] = [
        ("qv", {"bias": "all"}),
        ("mlp", {"bias": "all"}),  # its modules have no bias, others' biases were trained
        ("qv", {"bias": "lora_only"}),
        ("attention", {"bias": "all", "use_dora": True}),
        ("attention", {"bias": "lora_only", "lora_bias": True}),
        ("attention", {}),
    ]
    model_dir = save_model(make_model("qwen2"), tmp_path / "model")
    references: list[PeftModel] = []
    paths: list[Path] = []
    for index, (targets, config) in enumerate(variants):
        path = tmp_path / f"adapter{index}"
        references.append(
            add_adapter(
                make_model("qwen2"),
                path.name,
                path,
                rank=6,
                target_modules=TARGETS[targets],
                seed=index,
                **config,
            )
        )
        paths.append(path)
    _check_batch(references, model_dir, paths, device)


def _check_batch(
    reference: PeftModel | list[PeftModel],
    model_dir: Path,
    used: list[Path | None] | list[Path],
    device: str,
) -> None:
    """One request per entry of `used`, all in one batch. reference: one model, or one for each."""
    rig = Rig(model_dir, num_pages=3000, device=device)
    generator = random.Random(1)
    prompts: list[list[int]] = []
    for handle, path in enumerate(used):
        length = generator.choice([1, 5, 17, 60, 130])
        prompts.append([generator.randrange(3, VOCAB) for _ in range(length)])
        rig.submit(handle, prompts[handle], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    for handle, (prompt, path) in enumerate(zip(prompts, used, strict=True)):
        assert handle not in rig.failed, rig.failed[handle]
        tokens = rig.tokens[handle]
        assert len(tokens) == NEW_TOKENS
        model = reference[handle] if isinstance(reference, list) else reference
        expected = reference_logits(model, path, [*prompt, *tokens[:-1]])
        expected = expected[len(prompt) - 1 :]
        actual = torch.stack(rig.logits[handle])
        assert expected.argmax(-1).tolist() == tokens, path
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
    expected = reference_logits(reference, tmp_path / "a", [*prompt, *tokens[:-1]])
    assert expected[len(prompt) - 1 :].argmax(-1).tolist() == tokens
    assert (tokens[-1] == 2) == (rig.finished[0] == "stop")
    assert 2 not in tokens[:-1]


def _with_adapters(
    model,
    tmp_path: Path,
    adapters: list[tuple[str, int, dict[str, object]]] = ADAPTERS,
    targets_by_name: dict[str, list[str] | str] = TARGETS,
) -> tuple[PeftModel, list[Path]]:
    paths: list[Path] = []
    for index, (targets, rank, config) in enumerate(adapters):
        path = tmp_path / f"adapter{index}"
        model = add_adapter(
            model,
            path.name,
            path,
            rank=rank,
            target_modules=targets_by_name[targets],
            seed=100 + index,
            **config,
        )
        paths.append(path)
    return model, paths


@torch.no_grad()
def reference_logits(model: PeftModel, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """[len(tokens), vocab] float32: the next-token logits after each prefix."""
    ids = torch.tensor([tokens])
    if adapter is None:
        with model.disable_adapter():
            return model(input_ids=ids).logits[0]
    model.set_adapter(adapter.name)
    return model(input_ids=ids).logits[0]
