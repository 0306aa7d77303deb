"""What a quantization_config may say, and that all else is refused by field and value."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.errors import UnsupportedModelError
from dataplane.models.config_json import parse_config
from dataplane.models.quantization.description import Choice, Quantization
from dataplane.models.quantization.names import Matcher
from dataplane.models.quantization.parse import parse_quantization
from tests.helpers.quantized import FORMS, PLAIN_FIELDS

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}


def parse(config: object) -> Quantization:
    found = parse_quantization({"quantization_config": config})
    assert found is not None
    return found


def packed(form: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}
    return {**PACKED, "format": form, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ("nf4", ""),
        ([], None),
        ({"bits": 4}, "quant_method"),
        *(
            ({"quant_method": each}, "quant_method")
            for each in ("hqq", "eetq", "mxfp4", "fbgemm_fp8", "modelopt", "torchao", 4, ["awq"])
        ),
        ({**BNB, "load_in_8bit": True}, "load_in_4bit"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
        ({**BNB, "load_in_4bit": "yes"}, "load_in_4bit"),
        ({**BNB, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type"),
        ({**BNB, "bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage"),
        ({**BNB, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
        ({**BNB, "llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules"),
        ({**BNB, "llm_int8_skip_modules": [1]}, "llm_int8_skip_modules"),
        ({**BNB, "llm_int8_skip_modules": ["(?P<a>"]}, "llm_int8_skip_modules"),
        ({**BNB, "llm_int8_skip_modules": ["a*b"] * 300}, "llm_int8_skip_modules"),
        ({**BNB, "llm_int8_skip_modules": ["a" * 5000]}, "llm_int8_skip_modules"),
        ({**AWQ, "bits": 3}, "bits"),
        ({**AWQ, "bits": 8}, "bits"),
        ({**AWQ, "bits": 4.0}, "bits"),
        *(({**AWQ, "version": each}, "version") for each in ("gemv", "gemv_fast", "llm-awq", 1)),
        ({**AWQ, "zero_point": False}, "zero_point"),
        *(({**AWQ, "group_size": each}, "group_size") for each in (0, -2, True, "128")),
        *(({**GPTQ, "bits": each}, "bits") for each in (2, 3, 5, 16, None, True)),
        *(
            ({**GPTQ, "checkpoint_format": each}, "checkpoint_format")
            for each in ("marlin", "bitblas", "gptq_p")
        ),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
        ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype"),
        ({**GPTQ, "desc_act": "yes"}, "desc_act"),
        ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic"),
        ({**GPTQ, "dynamic": {"-:(": {}}}, "dynamic"),
        ({**GPTQ, "dynamic": ["-:x"]}, "dynamic"),
        ({**GPTQ, "adapter": {"type": "lora"}}, "adapter"),
        ({**GPTQ, "modules_in_block_to_quantize": "q_proj"}, "modules_in_block_to_quantize"),
        ({**GPTQ, "modules_in_block_to_quantize": [[5]]}, "modules_in_block_to_quantize"),
        *(
            ({**FP8, "weight_block_size": each}, "weight_block_size")
            for each in (128, [128], [0, 128], [128, 128, 1], [True, 1])
        ),
        ({**FP8, "activation_scheme": "per-token"}, "activation_scheme"),
        ({**FP8, "fmt": "e5m2"}, "fmt"),
        ({**FP8, "expert_dtype": "fp4"}, "expert_dtype"),
        ({**FP8, "modules_to_convert": ["model.embed_tokens"]}, "modules_to_convert"),
        ({**FP8, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**PACKED, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**PACKED, "transform_config": {"config_groups": {}}}, "transform_config"),
        ({**PACKED, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format"),
        *(
            ({**PACKED, "format": each}, "format")
            for each in ("dense", "marlin-24", "nvfp4-pack-quantized", "sparse-bitmask")
        ),
        ({**PACKED, "config_groups": {}}, "config_groups"),
        ({**PACKED, "config_groups": {"a": ["Linear"]}}, "config_groups.a"),
        ({**PACKED, "ignore": ["re:("]}, "ignore"),
        *((packed(num_bits=each), "num_bits") for each in (2, 3, 6)),
        (packed("int-quantized"), "num_bits"),
        (packed(type="float"), "type"),
        (packed("float-quantized", num_bits=8), "type"),
        (packed(type="nvfp"), "type"),
        (packed(strategy="tensor"), "strategy"),
        (packed(strategy="tensor_group"), "strategy"),
        (packed(strategy="channel"), "group_size"),
        (packed(group_size=None, strategy="group"), "group_size"),
        (packed(actorder="activation"), "actorder"),
        (packed(actorder="group", strategy="channel", group_size=-1), "actorder"),
        (packed(dynamic=True), "dynamic"),
        (packed(zp="x"), "zp"),
        (packed(symmetric="no"), "symmetric"),
        (
            packed("float-quantized", type="float", num_bits=8, strategy="block", group_size=None),
            "block_structure",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_field_and_value(
    config: Any, field: str | None
) -> None:
    if field is None:  # as good as absent
        assert parse_quantization({"quantization_config": config}) is None
        return
    with pytest.raises(UnsupportedModelError) as caught:
        parse(config)
    assert caught.value.reason == "MODEL_UNSUPPORTED"
    assert caught.value.metadata["field"].startswith("quantization_config")
    assert caught.value.metadata["field"].endswith(field)
    assert len(caught.value.message) < 1000 and "supported: " in caught.value.message


def test_outputs_of_groups_are_not_quantised() -> None:
    for field, value in (("output_activations", {"num_bits": 8}), ("targets", ["Embedding"])):
        group = {"targets": ["Linear"], "weights": WEIGHTS, field: value}
        with pytest.raises(UnsupportedModelError, match=field):
            parse({**PACKED, "config_groups": {"group_0": group}})


@pytest.mark.parametrize("config", [form.config for form in FORMS.values()])
def test_all_forms_are_described(config: dict[str, Any]) -> None:
    assert parse(config).method == config["quant_method"]


def test_fields_that_do_not_matter() -> None:
    plain = [parse(each) for each in (BNB, AWQ, GPTQ, FP8, PACKED)]
    for found, (config, more) in zip(
        plain,
        (
            (BNB, {"bnb_4bit_compute_dtype": "float16", "_load_in_4bit": True}),
            (AWQ, {"modules_to_not_convert": None, "do_fuse": False, "version": "GEMM"}),
            (GPTQ, {"damp_percent": 0.1, "meta": {"quantizer": ["x:1"]}, "format": "gptq"}),
            (FP8, {"fmt": "e4m3", "scale_fmt": "ue8m0", "modules_to_not_convert": []}),
            (PACKED, {"global_compression_ratio": 1.9, "sparsity_config": {}, "version": "0.9"}),
        ),
        strict=True,
    ):
        assert parse({**config, **more}) == found
    unsloth = {**BNB}
    del unsloth["quant_method"]
    assert parse(unsloth) == plain[0]


def chosen(config: dict[str, Any], module: str) -> Choice:
    return parse(config).selection.choose(module, Matcher())


@pytest.mark.parametrize(
    ("names", "module", "is_quantized", "is_sure"),
    [
        ([], "model.layers.1.mlp.up_proj", True, True),
        ([], "lm_head", True, False),
        (["lm_head"], "lm_head", False, True),
        (["model.layers.1"], "model.layers.1.mlp.up_proj", False, True),
        (["model.layers.1"], "model.layers.11.mlp.up_proj", True, False),
        (["model.layers.1."], "model.layers.11.mlp.up_proj", True, True),
        (["up_proj"], "model.layers.1.mlp.up_proj", False, True),
        (["mlp"], "model.layers.1.mlp.up_proj", True, False),
        (["model.layers.*.mlp"], "model.layers.11.mlp.up_proj", False, True),
        ([r"model\.layers\.(0|1)\.mlp"], "model.layers.1.mlp.up_proj", False, True),
        ([r"model\.layers\.(0|1)\.mlp"], "model.layers.11.mlp.up_proj", True, True),
    ],
)
def test_lists_of_modules_that_are_left_out(
    names: list[str], module: str, is_quantized: bool, is_sure: bool
) -> None:
    for config in (
        {**BNB, "llm_int8_skip_modules": names},
        {**AWQ, "modules_to_not_convert": names},
        {**FP8, "ignored_layers": names},
    ):
        choice = chosen(config, module)
        assert (choice.scheme is not None, choice.is_sure) == (is_quantized, is_sure)


def test_groups_of_compressed_tensors() -> None:
    def group(targets: list[str], **weights: Any) -> dict[str, Any]:
        return {"targets": targets, "weights": {**WEIGHTS, **weights}, "format": "pack-quantized"}

    eight = {"num_bits": 8, "strategy": "channel", "group_size": None}
    config = {
        **PACKED,
        "format": "mixed-precision",
        "config_groups": {
            "all": group(["Linear"]),
            "down": group(["re:.*down_proj$"], **eight),
            "one": group(["model.layers.3.mlp.down_proj"], group_size=64),
        },
        "ignore": ["re:.*layers[.]0[.].*", "lm_head", "model.layers.2.mlp.up_proj"],
    }

    def scheme(module: str) -> str:
        return repr(chosen(config, module).scheme)

    assert "bits=4, group_size=128" in scheme("model.layers.1.mlp.up_proj")
    assert "bits=8, group_size=None" in scheme("model.layers.1.mlp.down_proj")
    assert "bits=4, group_size=64" in scheme("model.layers.3.mlp.down_proj")
    for module in ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"):
        assert scheme(module) == "None"
    config["config_groups"]["two"] = group(["re:.*layers.4.*"])
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.4\.mlp\.down_proj"):
        scheme("model.layers.4.mlp.down_proj")
    assert "group_size=128" in scheme("model.layers.4.mlp.up_proj")


def test_modules_that_gptq_names() -> None:
    config = {
        **GPTQ,
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]],
        "dynamic": {"-:.*layers\\.1\\..*": {}},
    }
    assert chosen(config, "model.layers.0.self_attn.q_proj").scheme is not None
    for module in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"):
        assert chosen(config, module) == Choice(None)
    assert chosen(config, "lm_head").is_sure is False


def test_config_has_the_description_but_shows_it_apart() -> None:
    plain = parse_config(PLAIN_FIELDS)
    config = parse_config({**PLAIN_FIELDS, "quantization_config": AWQ})
    assert plain.quantization is None and config.quantization == parse(AWQ)
    assert repr(config) == repr(plain) and config != plain
    packed = parse_config({**PLAIN_FIELDS, "compression_config": PACKED})
    assert packed.quantization == parse(PACKED)
