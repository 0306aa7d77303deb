"""Adapters that PEFT has trained on models that see: their text part counts, by PEFT's names."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.adapter.manifest import parse_adapter
from storage.adapter.match import check_base
from storage.errors import AdapterMismatchError, BadWeightsError, UnsupportedFeatureError
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from tests.storage.samples import SPEC, lora_tensors, safetensors, tensor
from tests.storage.samples import config as peft_config

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

VISION = ("vision_tower.", "multi_modal_projector.", "visual.")
EYES = transformers.PixtralVisionConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16
)
TEXT = transformers.MistralConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
BY_WORDS = (  # as fine-tuning programs write it that leave out the vision part
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|v_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj|down_proj)))"
)


class Earlier(transformers.PreTrainedModel):
    """Laid out as transformers had it before 4.52."""

    config_class = transformers.MistralConfig
    _supports_sdpa = True

    def __init__(self) -> None:
        super().__init__(TEXT)
        self.vision_tower = transformers.PixtralVisionModel(EYES)
        self.language_model = transformers.MistralForCausalLM(TEXT)

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.lm_head


class Beside(transformers.PreTrainedModel):
    """As Qwen's were laid out before that."""

    config_class = transformers.MistralConfig
    _supports_sdpa = True

    def __init__(self) -> None:
        super().__init__(TEXT)
        self.visual = transformers.PixtralVisionModel(EYES)
        self.model = transformers.MistralModel(TEXT)
        self.lm_head = torch.nn.Linear(16, 32, bias=False)

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head


def qwen() -> Any:
    shape = {name: getattr(TEXT, name) for name in ("vocab_size", "hidden_size", "head_dim")}
    text = {
        **shape,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
    }
    sight = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2}
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config={**sight, "out_hidden_size": 16}
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def later() -> Any:
    config = transformers.Mistral3Config(
        text_config=TEXT, vision_config=EYES, tie_word_embeddings=False
    )
    return transformers.Mistral3ForConditionalGeneration(config)


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(model: Any, **fields: Any) -> tuple[bytes, bytes, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(model, peft.LoraConfig(**fields))
            shutil.rmtree(tmp_path / "saved", ignore_errors=True)
            tuned.save_pretrained(str(tmp_path / "saved"))
        saved = tmp_path / "saved"
        return (saved / CONFIG_NAME).read_bytes(), (saved / WEIGHTS_NAME).read_bytes(), tuned

    return make


@pytest.mark.parametrize("model", [Earlier, later, Beside, qwen])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 3, r".*\.1\.mlp\..*": 5}},
        {"target_modules": BY_WORDS},
        {"target_modules": r".*(language_model|^model).*\.layers\.1\..*_proj"},
        {"target_modules": "all-linear", "exclude_modules": r".*(vision|projector).*"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["o_proj", "embed_tokens"], "alpha_pattern": {"o_proj": 3}},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "use_dora": True, "layers_to_transform": [0]},
    ],
)
def test_the_text_part_is_read_as_peft_meant_it(
    save: Callable[..., Any], model: Callable[[], Any], fields: dict[str, Any]
) -> None:
    config, weights, tuned = save(model(), **fields)
    manifest = parse_adapter(config, weights).manifest
    text: dict[str, tuple[int, float]] = {}
    num_vision = 0
    for name, module in tuned.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            name = name.removeprefix("base_model.model.")
            if name.removeprefix("model.").startswith(VISION):
                num_vision += 3 if fields.get("use_dora") else 2
            else:
                text[name] = module.r["default"], module.scaling["default"]
    assert text
    found = {manifest.full_name(m): (m.rank, m.scaling) for m in manifest.modules}
    assert found == text
    assert len(manifest.vision) == num_vision
    check_base(manifest, SPEC)
    state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    count = sum(len(module.refs) for module in manifest.modules)
    count += len(manifest.saved_modules) + len(manifest.trained_tokens) + num_vision
    assert count == len(state)


def test_a_model_without_its_head_has_names_of_its_own(save: Callable[..., Any]) -> None:
    config, weights, _ = save(later().model, target_modules=["q_proj"], layers_to_transform=[0])
    manifest = parse_adapter(config, weights).manifest
    assert manifest.layers_root == "language_model."
    check_base(manifest, SPEC)


@pytest.mark.parametrize("model", [Earlier, later])
def test_the_head_has_the_name_that_its_model_gives_it(
    save: Callable[..., Any], model: Callable[[], Any]
) -> None:
    name = "language_model.lm_head" if model is Earlier else "lm_head"
    for fields in (
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": r".*(q_proj|language_model\.lm_head)|lm_head"},
        {"target_modules": ["q_proj", name], "rank_pattern": {f"^{name}": 2}},
        {"target_modules": [name]},
    ):
        config, weights, tuned = save(model(), r=4, **fields)
        manifest = parse_adapter(config, weights).manifest
        assert manifest.full_name(manifest.modules[-1]) == name
        module = tuned.base_model.model.get_submodule(name)
        assert manifest.modules[-1].rank == module.r["default"]
        check_base(manifest, SPEC)


def renamed(root: str, layers: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    return {
        name.replace("model.model.layers", f"model.{root}layers"): value
        for name, value in lora_tensors(layers=layers).items()
    }


SEEING = "model.language_model."
EYE = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"
QWEN_EYE = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
OLD_EYE = "base_model.model.visual.blocks.0.attn.qkv.lora_A.weight"
PROJECTOR = "base_model.model.multi_modal_projector.linear_1.lora_B.default.weight"


def test_the_digest_tells_adapters_apart_that_see_differently() -> None:
    digests: set[str] = set()
    for seen in ({}, {EYE: tensor([4, 8])}, {EYE: tensor([4, 8], seed=1)}):
        files = peft_config(), safetensors({**renamed(SEEING), **seen})
        manifest = parse_adapter(*files).manifest
        digests.add(manifest.digest)
        assert (
            manifest.size_bytes
            == parse_adapter(peft_config(), safetensors(renamed(SEEING))).manifest.size_bytes
        )
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({**renamed("model."), EYE: tensor([4, 8])}, "several models"),
        ({**renamed("model."), QWEN_EYE: tensor([4, 8])}, "several models"),
        ({**renamed("model."), OLD_EYE: tensor([4, 8]), EYE: tensor([4, 8])}, "several models"),
        ({**renamed("model.", (0,)), **renamed(SEEING, (1,))}, "several models"),
        (
            {
                **renamed(SEEING),
                "base_model.model.language_model.lm_head.lora_A.weight": tensor([4, 16]),
                "base_model.model.language_model.lm_head.lora_B.weight": tensor([32, 4]),
            },
            "language_model.lm_head",
        ),
        (
            {
                **renamed(SEEING),
                "base_model.model.model.vision_tower.proj.weight": tensor([4, 16]),
            },
            "not understood",
        ),
        (
            {
                **renamed(SEEING),
                "base_model.model.model.audio_tower.proj.lora_A.weight": tensor([4, 16]),
            },
            "not understood",
        ),
    ],
)
def test_names_of_several_models_are_refused(tensors: dict[str, Any], text: str) -> None:
    with pytest.raises(BadWeightsError, match=text):
        parse_adapter(peft_config(), safetensors(tensors))


def test_what_changes_images_alone_is_refused_by_name() -> None:
    weights = safetensors({PROJECTOR: tensor([4, 8])})
    with pytest.raises(UnsupportedFeatureError, match=r"multi_modal_projector.*only text"):
        parse_adapter(peft_config(), weights)
    config = peft_config(modules_to_save=["multi_modal_projector"])
    with pytest.raises(UnsupportedFeatureError, match="multi_modal_projector"):
        parse_adapter(config, safetensors(renamed(SEEING)))


def test_a_missing_text_module_is_told_by_its_name_there() -> None:
    manifest = parse_adapter(
        peft_config(target_modules=["q_proj", "k_proj"]), safetensors(renamed(SEEING))
    ).manifest
    with pytest.raises(AdapterMismatchError, match=r"model\.language_model\.layers\.0\.self_attn"):
        check_base(manifest, SPEC)
