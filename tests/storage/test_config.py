import json
from typing import Any

import pytest

from storage.adapter.config import parse_config
from storage.errors import AdapterTooLargeError, BadConfigError, UnsupportedFeatureError
from storage.limits import AdapterLimits
from tests.storage.samples import config


def test_fields_are_read() -> None:
    parsed = parse_config(
        config(
            r=16,
            lora_alpha=12.5,
            use_rslora=True,
            rank_pattern={"a": 2, "b": 3},
            alpha_pattern={"c": 1},
            layers_to_transform=[0, 3],
            layers_pattern="layers",
            exclude_modules="x.*",
            task_type="CAUSAL_LM",
            fan_in_fan_out=True,
        )
    )
    assert (parsed.r, parsed.lora_alpha, parsed.use_rslora) == (16, 12.5, True)
    assert list(parsed.rank_pattern.items()) == [("a", 2), ("b", 3)]
    assert parsed.alpha_pattern == {"c": 1.0}
    assert parsed.target_modules == ("q_proj",)
    assert parsed.exclude_modules == "x.*"
    assert parsed.layers_to_transform == (0, 3)
    assert parsed.layers_pattern == ("layers",)
    assert parsed.base_model_name_or_path == "org/tiny"


def test_peft_defaults_stand_in_for_missing_fields() -> None:
    parsed = parse_config(b'{"peft_type": "LORA", "target_modules": "all-linear"}')
    assert (parsed.r, parsed.lora_alpha, parsed.use_rslora) == (8, 8.0, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modules_to_save", ["lm_head", "norm"]),
        ("modules_to_save", ["input_layernorm"]),
        ("modules_to_save", ["mlp"]),
        ("trainable_token_indices", {"wte": [1]}),
        ("layer_replication", [[0, 2]]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("use_bdlora", {"x": 1}),
        ("arrow_config", {"x": 1}),
        ("kasa_config", {"x": 1}),
        ("velora_config", {"x": 1}),
        ("monteclora_config", {"x": 1}),
        ("a_field_of_the_future", 1),
        ("peft_type", "LOHA"),
        ("peft_type", "ADALORA"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", 3),
    ],
)
def test_what_cannot_be_applied_exactly_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeatureError, match=name) as caught:
        parse_config(config(**{name: value}))
    assert caught.value.reason == "UNSUPPORTED_FEATURE"
    assert caught.value.metadata["field"] == name


def test_dora_and_biases_are_read() -> None:
    parsed = parse_config(config(use_dora=True, bias="lora_only"))
    assert (parsed.use_dora, parsed.bias, parsed.lora_bias) == (True, "lora_only", False)
    parsed = parse_config(config(lora_bias=True, bias=None))
    assert (parsed.use_dora, parsed.bias, parsed.lora_bias) == (False, "none", True)
    with pytest.raises(UnsupportedFeatureError, match="lora_bias"):  # as in PEFT
        parse_config(config(use_dora=True, lora_bias=True))


def test_embedding_and_head_are_read() -> None:
    parsed = parse_config(config(modules_to_save=["lm_head", "model.embed_tokens", "embed_tokens"]))
    assert parsed.modules_to_save == ("embed_tokens", "lm_head")
    assert parsed.trained_tokens == {} and parsed.ensure_weight_tying is False
    parsed = parse_config(config(trainable_token_indices=[5, 2], ensure_weight_tying=True))
    assert parsed.trained_tokens == {"embed_tokens": (5, 2)} and parsed.ensure_weight_tying is True
    by_module = {"model.embed_tokens": [5], "lm_head": [0]}
    parsed = parse_config(config(trainable_token_indices=by_module))
    assert parsed.trained_tokens == {"embed_tokens": (5,), "lm_head": (0,)}
    assert parse_config(config(trainable_token_indices=[])).trained_tokens == {}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("modules_to_save", "lm_head", "list of names"),
        ("modules_to_save", {"lm_head": 1}, "list of names"),
        ("modules_to_save", ["lm_head", 1], "list of names"),
        ("trainable_token_indices", [1, 2, 1], "token 1 twice"),
        ("trainable_token_indices", [-1], "holds -1"),
        ("trainable_token_indices", [True], "holds True"),
        ("trainable_token_indices", [1.0], r"holds 1\.0"),
        ("trainable_token_indices", [1 << 31], "holds 2147483648"),
        ("trainable_token_indices", [[1]], "holds a list"),
        ("trainable_token_indices", "5", "token ids"),
        ("trainable_token_indices", 5, "token ids"),
        ("trainable_token_indices", {"lm_head": []}, "1 to 65536"),
        ("trainable_token_indices", list(range(65_537)), "a list of 65537"),
        ("trainable_token_indices", {"embed_tokens": [1], "model.embed_tokens": [2]}, "twice"),
        ("ensure_weight_tying", "yes", "true or false"),
    ],
)
def test_what_cannot_be_an_embedding_or_a_head(name: str, value: Any, text: str) -> None:
    with pytest.raises(BadConfigError, match=text) as caught:
        parse_config(config(**{name: value}))
    assert name in caught.value.message and len(caught.value.message) < 500


def test_a_module_is_saved_or_has_trained_tokens() -> None:
    with pytest.raises(BadConfigError, match="lm_head is in modules_to_save and in"):
        parse_config(config(modules_to_save=["lm_head"], trainable_token_indices={"lm_head": [1]}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", "some"),
        ("bias", True),
        ("bias", ["all"]),
        ("use_dora", "yes"),
        ("use_dora", 1),
        ("lora_bias", {"a": 1}),
    ],
)
def test_dora_and_biases_have_few_values(name: str, value: Any) -> None:
    with pytest.raises(BadConfigError, match=name):
        parse_config(config(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("init_lora_weights", False),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", "orthogonal"),
        ("eva_config", {"rho": 2.0}),
        ("lora_dropout", 0.1),
        ("inference_mode", True),
        ("revision", "main"),
        ("a_field_of_the_future", None),
        ("a_field_of_the_future", False),
        ("modules_to_save", None),
        ("modules_to_save", []),
        ("rank_pattern", None),
    ],
)
def test_harmless_fields_pass(name: str, value: Any) -> None:
    assert parse_config(config(**{name: value})).r == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 0),
        ("r", 257),
        ("r", -1),
        ("r", True),
        ("r", 4.0),
        ("r", "4"),
        ("r", None),
        ("r", 10**3000),
        ("lora_alpha", "x"),
        ("lora_alpha", True),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e300),
        ("lora_alpha", None),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", ""),
        ("target_modules", [1]),
        ("target_modules", [""]),
        ("target_modules", {"q": 1}),
        ("target_modules", ["x"] * 5000),
        ("exclude_modules", 3),
        ("rank_pattern", ["q"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 300}),
        ("alpha_pattern", {"q_proj": None}),
        ("use_rslora", 1),
        ("use_rslora", "yes"),
        ("layers_to_transform", "1"),
        ("layers_to_transform", [True]),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", 1.5),
        ("base_model_name_or_path", ["a"]),
        ("base_model_name_or_path", "x" * 5000),
        ("peft_type", None),
        ("layers_pattern", ["layers"]),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadConfigError, match=name) as caught:
        parse_config(config(**{name: value}))
    assert caught.value.reason == "BAD_CONFIG"
    assert len(caught.value.message) < 600


def test_layer_choice_needs_a_list_of_targets_as_in_peft() -> None:
    with pytest.raises(BadConfigError, match="layers_to_transform"):
        parse_config(config(target_modules=".*q_proj", layers_to_transform=[0]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"r": 4, "r": 8}',
        b'{"r": NaN}',
        b'{"lora_alpha": Infinity}',
        b'{"lora_alpha": 1e999}',
        b'{"r": ' + b"1" * 5000 + b"}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"base_model_name_or_path": "\\ud800"}',
        b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}",
        b'{"a": ' + b"[" * 200_000,
        b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a": ' * 150_000,
    ],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadConfigError) as caught:
        parse_config(data)
    assert len(caught.value.message) < 400


def test_size_is_bounded_before_parsing() -> None:
    with pytest.raises(AdapterTooLargeError) as caught:
        parse_config(b" " * 101, limits=AdapterLimits(max_config_bytes=100))
    assert caught.value.metadata == {"size_bytes": "101", "limit_bytes": "100"}


def test_max_rank_can_be_lowered() -> None:
    limits = AdapterLimits(max_rank=8)
    assert parse_config(config(r=8), limits=limits).r == 8
    with pytest.raises(BadConfigError, match="1 to 8"):
        parse_config(config(r=9), limits=limits)


def test_errors_do_not_echo_unbounded_input() -> None:
    with pytest.raises(UnsupportedFeatureError) as caught:
        parse_config(config(**{"x" * 10_000: "y" * 10_000}))
    assert len(caught.value.message) < 700
    assert len(json.dumps(caught.value.metadata)) < 300
