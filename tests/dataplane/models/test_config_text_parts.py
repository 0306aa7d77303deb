"""config.json of multimodal checkpoints, whose text part is served."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import (
    Gemma3Config,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from dataplane.errors import UnsupportedModelError
from dataplane.models.config_json import parse_config

SEEING = {
    "Gemma3": Gemma3Config,
    "Mistral3": Mistral3Config,
    "Qwen2VL": Qwen2VLConfig,
    "Qwen2_5_VL": Qwen2_5_VLConfig,
    "Qwen3VL": Qwen3VLConfig,
}
EYES = {"Gemma3": {"model_type": "siglip_vision_model"}, "Mistral3": {"model_type": "pixtral"}}


def seeing(name: str, text: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "text_config": text or {},
        "vision_config": {"hidden_size": 16},
        **fields,
    }


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize(
    "text",
    [
        {"pad_token_id": 0},
        {  # as google/gemma-3-4b-it has it
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    ],
)
def test_a_silent_text_config_means_what_transformers_takes_it_for(
    name: str, text: dict[str, Any]
) -> None:
    full = SEEING[name](text_config=dict(text), vision_config=EYES.get(name, {}))
    written = json.loads(full.text_config.to_json_string(use_diff=False))
    ends = {"eos_token_id": [1, 106]}
    config = parse_config(seeing(name, text, **ends))
    assert config == parse_config(seeing(name, written, dtype="float32", **ends))
    assert config.num_heads == full.text_config.num_attention_heads
    assert config.vocab_size == full.text_config.vocab_size
    assert config.is_text_part
    assert config.eos_token_ids == (1, 106)


def test_the_whole_model_s_dtype_and_quantisation_are_the_text_part_s() -> None:
    text = {"torch_dtype": "float32", "dtype": "float32"}
    assert parse_config(seeing("Gemma3", text, torch_dtype="bfloat16")).dtype == "bfloat16"
    assert parse_config(seeing("Gemma3", text, dtype="float16")).dtype == "float16"
    assert parse_config(seeing("Gemma3", {"torch_dtype": "bfloat16"})).dtype == "bfloat16"
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert parse_config(seeing("Gemma3", **quantised)).quantization is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (seeing("Gemma3", text_config=None), "text_config"),
        (seeing("Gemma3", text_config="gemma3_text"), "text_config"),
        (seeing("Mistral3", {"model_type": "ministral3"}), "text_config.model_type"),
        (seeing("Gemma3", {"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (seeing("Gemma3", {"use_bidirectional_attention": True}), "use_bidirectional_attention"),
        (seeing("Gemma3", tie_word_embeddings=False), "tie_word_embeddings"),
        (seeing("Gemma3", tie_word_embeddings="no"), "tie_word_embeddings"),
        (seeing("Mistral3", {"tie_word_embeddings": 0}), "tie_word_embeddings"),
        (seeing("Gemma3", {"hidden_size": -1}), "hidden_size"),
        (seeing("Llava"), "architectures"),
        (seeing("Qwen3VL", text_config=None), "text_config"),
        (seeing("Qwen3VL", {"tie_word_embeddings": True}), "tie_word_embeddings"),
        (seeing("Qwen2VL", {"model_type": "qwen2_5_vl_text"}), "text_config.model_type"),
        (seeing("Qwen2VL", {"rope_scaling": {"type": "mrope", "odd": 1}}), "rope_parameters.odd"),
    ],
)
def test_what_sees_and_is_not_served_exactly_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(fields)
    assert field in caught.value.metadata["field"]


def test_what_text_is_not_asked_makes_no_difference_to_qwen_vl() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    plain = parse_config(seeing("Qwen2_5_VL", {"rope_scaling": rope}))
    parted = {**rope, "mrope_section": [16, 24, 24]}
    assert parse_config(seeing("Qwen2_5_VL", {"rope_scaling": parted})) == plain
    assert plain.ropes[0].kind == "yarn"
    sliding = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
    assert parse_config(seeing("Qwen3VL", sliding)) == parse_config(seeing("Qwen3VL"))
    assert parse_config(seeing("Qwen2_5_VL", sliding)).sliding_windows[0] == 9
    tied = parse_config(seeing("Qwen2_5_VL", {"tie_word_embeddings": True}))
    assert (tied.tie_word_embeddings, tied.is_tie_in_doubt) == (True, False)


def test_a_head_of_its_own_unties_mistral_3() -> None:
    silent = parse_config(seeing("Mistral3"))
    assert (silent.tie_word_embeddings, silent.is_tie_in_doubt) == (True, True)
    told = parse_config(seeing("Mistral3", tie_word_embeddings=False))
    assert (told.tie_word_embeddings, told.is_tie_in_doubt) == (False, False)
    tied = parse_config(seeing("Gemma3"))
    assert (tied.tie_word_embeddings, tied.is_tie_in_doubt) == (True, False)
