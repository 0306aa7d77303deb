"""The text part of checkpoints of models that see, in every spelling."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataplane.errors import CheckpointError, UnsupportedModelError
from dataplane.models.config_json import load_config
from dataplane.models.multimodal import text_name, whole_names
from dataplane.models.weights import ModelWeights, load_weights
from dataplane.parallel.shard import Shard
from tests.dataplane.models.test_weights import everything, shard
from tests.helpers.models import make_model, save_model
from tests.helpers.quantized import SHAPE, quantize

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def load(model_dir: Path) -> ModelWeights:
    return load_weights(model_dir, load_config(model_dir), torch.float32, CPU)


def tensors_of(model_dir: Path) -> Tensors:
    return load_file(model_dir / "model.safetensors")


def put(model_dir: Path, tensors: Tensors) -> None:
    save_file(tensors, model_dir / "model.safetensors")


def spelt_otherwise(tensors: Tensors) -> Tensors:
    """As modules are named since transformers 4.52; Qwen3-VL's, which knows no other, as before."""
    found: Tensors = {}
    for name, value in tensors.items():
        if name.startswith("model.language_model."):
            new = name.replace("model.language_model.", "model.")
        elif name.startswith("language_model.model."):
            new = name.replace("language_model.model.", "model.language_model.")
        else:
            new = name.replace("model.", "model.language_model.") if name[:6] == "model." else name
        new = new.replace("language_model.lm_head", "lm_head")
        is_vision = new.startswith(("vision_tower.", "multi_modal_projector.", "visual."))
        found[f"model.{new}" if is_vision else new] = value
    assert found.keys() != tensors.keys()
    return found


@pytest.mark.parametrize("architecture", ["gemma3-vision", "mistral3", "qwen2.5-vl", "qwen3-vl"])
def test_both_spellings_are_the_model(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture)
    model_dir = save_model(model, tmp_path / "model")
    earlier = load(model_dir)
    assert torch.equal(earlier.embed, model.get_input_embeddings().weight)
    assert torch.equal(earlier.lm_head, model.get_output_embeddings().weight)
    put(model_dir, spelt_otherwise(tensors_of(model_dir)))
    shard(model_dir, 3)
    for one, other in zip(everything(earlier), everything(load(model_dir)), strict=True):
        assert torch.equal(one, other)


def test_names_lead_there_and_back() -> None:
    for name, count in (("model.layers.3.mlp.up_proj", 3), ("lm_head", 2)):
        there = whole_names(name)
        assert len(set(there)) == count
        assert {text_name(f"{each}.weight") for each in there} == {f"{name}.weight"}
    assert text_name("vision_tower.layers.0.mlp.up_proj.weight") is None
    assert text_name("model.vision_tower.layers.0.mlp.up_proj.weight") is None
    assert text_name("visual.blocks.0.attn.qkv.weight") is None
    assert text_name("model.visual.blocks.0.attn.qkv.weight") is None


def test_what_sees_is_never_read(tmp_path: Path) -> None:
    model_dir = save_model(make_model("gemma3-vision"), tmp_path / "model")
    whole = everything(load(model_dir))
    text = {k: v for k, v in tensors_of(model_dir).items() if k.startswith("language_model.")}
    strange = {"vision_tower.layers.0.weight": torch.ones(3, 3, dtype=torch.int64)}
    put(model_dir, {**text, **strange})
    for one, other in zip(whole, everything(load(model_dir)), strict=True):
        assert torch.equal(one, other)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    model_dir = save_model(make_model("gemma3-vision"), tmp_path / "model")
    tensors = tensors_of(model_dir)
    copy = tensors["language_model.model.norm.weight"].clone()
    put(model_dir, {**tensors, "model.language_model.norm.weight": copy})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight under two names"):
        load(model_dir)
    shard(model_dir, 2)  # so that they may be in two files
    with pytest.raises(CheckpointError, match="two names"):
        load(model_dir)


def silent(model_dir: Path) -> None:
    """As Mistral's own files are: nothing is said of a tie."""
    path = model_dir / "config.json"
    fields = json.loads(path.read_text())
    del fields["tie_word_embeddings"], fields["text_config"]["tie_word_embeddings"]
    path.write_text(json.dumps(fields))


def test_where_mistral_3_does_not_tell_its_head_decides(tmp_path: Path) -> None:
    model = make_model("mistral3")
    model_dir = save_model(model, tmp_path / "model")
    silent(model_dir)
    weights = load(model_dir)
    assert (weights.tied, weights.is_tie_in_doubt) == (False, True)
    assert torch.equal(weights.lm_head, model.get_output_embeddings().weight)
    config = load_config(model_dir)
    part = load_weights(model_dir, config, torch.float32, CPU, Shard(config, 1, 2))
    assert torch.equal(part.lm_head, weights.lm_head)
    tensors = tensors_of(model_dir)
    del tensors["language_model.lm_head.weight"]
    put(model_dir, tensors)
    weights = load(model_dir)
    assert (weights.tied, weights.is_tie_in_doubt) == (True, False)
    assert weights.lm_head is weights.embed


def test_a_head_that_differs_in_spite_of_gemma_3_s_tie_is_refused(tmp_path: Path) -> None:
    model_dir = save_model(make_model("gemma3-vision"), tmp_path / "model")
    tensors = tensors_of(model_dir)
    embed = tensors["language_model.model.embed_tokens.weight"]
    put(model_dir, {**tensors, "language_model.lm_head.weight": embed + 1})
    with pytest.raises(CheckpointError, match="tie_word_embeddings") as caught:
        load(model_dir)
    assert caught.value.reason == "HEAD_NOT_TIED"


@pytest.mark.parametrize("spelling", ["language_model.model", "model.language_model"])
@pytest.mark.parametrize("form", ["nf4-some", "packed-4"])
def test_quantisation_may_name_modules_in_both_ways(
    form: str, spelling: str, tmp_path: Path
) -> None:
    """Whatever spelling the tensors have."""
    model_dir = save_model(make_model("mistral3", head_dim=32, **SHAPE), tmp_path / "model")
    values = quantize(form, model_dir)
    path = model_dir / "config.json"
    fields = json.loads(path.read_text())
    described = fields["quantization_config"]
    if form == "nf4-some":
        described["llm_int8_skip_modules"] = ["lm_head", f"{spelling}.layers.0.mlp", "k_proj"]
    else:
        targets = f"re:{re.escape(spelling)}.*_proj"
        described["config_groups"]["group_0"]["targets"] = [targets]
    path.write_text(json.dumps(fields))
    weights = load(model_dir)
    for index, layer in enumerate(weights.layers):
        for group, module in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
            expected = values[f"language_model.model.layers.{index}.{module}.weight"]
            torch.testing.assert_close(layer.group(group)[0], expected, rtol=1e-6, atol=0)


def flat(model_dir: Path) -> None:
    """As Qwen's own files are: no text_config, the older rope's name, the head untold."""
    path = model_dir / "config.json"
    fields = json.loads(path.read_text())
    text = fields.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "model_type": fields["model_type"]}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    path.write_text(json.dumps({**fields, **text}))


@pytest.mark.parametrize("architecture", ["qwen2-vl", "qwen2.5-vl"])
@pytest.mark.parametrize("tie", [False, True])
def test_qwen_s_flat_config_is_the_same_model(architecture: str, tie: bool, tmp_path: Path) -> None:
    model = make_model(architecture, tie_word_embeddings=tie)
    model_dir = save_model(model, tmp_path / "model")
    config = load_config(model_dir)
    assert config.ropes[0].theta == 100.0
    weights = load(model_dir)
    assert weights.tied == tie
    assert torch.equal(weights.lm_head, model.get_output_embeddings().weight)
    flat(model_dir)
    assert load_config(model_dir) == config
    for one, other in zip(everything(weights), everything(load(model_dir)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["nf4-some", "packed-4"])
def test_quantised_qwen_names_modules_as_its_tensors(form: str, tmp_path: Path) -> None:
    model_dir = save_model(make_model("qwen2.5-vl", **SHAPE), tmp_path / "model")
    values = quantize(form, model_dir)
    weights = load(model_dir)
    for index, layer in enumerate(weights.layers):
        expected = values[f"model.layers.{index}.mlp.down_proj.weight"]
        torch.testing.assert_close(layer.group("down")[0], expected, rtol=1e-6, atol=0)


def test_names_that_mean_different_schemes_are_refused(tmp_path: Path) -> None:
    model_dir = save_model(make_model("mistral3", head_dim=32, **SHAPE), tmp_path / "model")
    quantize("packed-4", model_dir)
    path = model_dir / "config.json"
    fields = json.loads(path.read_text())
    groups = fields["quantization_config"]["config_groups"]
    groups["group_0"]["targets"] = [r"re:language_model\.model\..*"]
    groups["group_1"] = json.loads(json.dumps(groups["group_0"]))
    groups["group_1"]["targets"] = [r"re:model\.language_model\..*"]
    path.write_text(json.dumps(fields))
    load(model_dir)
    groups["group_1"]["weights"]["group_size"] = 64
    path.write_text(json.dumps(fields))
    with pytest.raises(UnsupportedModelError, match="different schemes"):
        load(model_dir)
