"""Adapters that PEFT itself has made and saved, against PEFT's own view of them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.adapter.config import parse_config
from storage.adapter.manifest import AdapterManifest, frozen_base_name, parse_adapter
from storage.adapter.match import check_base
from storage.adapter.selection import ModuleSelector
from storage.errors import AdapterMismatchError, UnsupportedFeatureError
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from tests.storage.samples import SPEC

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

Save = Callable[..., tuple[bytes, bytes, Any]]
ACTIVATED: dict[str, Any] = {
    "target_modules": ["q_proj", "lm_head"],
    "alora_invocation_tokens": [1, 2],
    "task_type": "CAUSAL_LM",
}


def tiny_llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            **changes,
        )
    )
    return model


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(model: Any = None, **fields: Any) -> tuple[bytes, bytes, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(
                tiny_llama() if model is None else model, peft.LoraConfig(**fields)
            )
            shutil.rmtree(tmp_path / "saved", ignore_errors=True)
            tuned.save_pretrained(str(tmp_path / "saved"))
        saved = tmp_path / "saved"
        return (saved / CONFIG_NAME).read_bytes(), (saved / WEIGHTS_NAME).read_bytes(), tuned

    return make


def by_name(manifest: AdapterManifest) -> dict[str, tuple[int, float]]:
    return {manifest.full_name(m): (m.rank, m.scaling) for m in manifest.modules}


def as_peft_sees_it(tuned: Any) -> dict[str, tuple[int, float]]:
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in tuned.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"task_type": "CAUSAL_LM"},
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 32},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj", "down_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": r".*\.layers\.1\.(self_attn|mlp)\..*_proj"},
        {"target_modules": r"^(model)(?=\.).*\.(q_proj|k_proj)$"},
        {"target_modules": r"(?:.*?(?:attn).*?)(?:\b[qk]_proj)"},
        {"target_modules": ["q_proj", "lm_head"], "r": 2},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {
            "target_modules": ["model.layers.0.self_attn.k_proj", "up_proj"],
            "layers_to_transform": [1],
        },
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {
                "layers.0.self_attn.q_proj": 2,
                "q_proj": 3,
                r"^model\.layers\.\d+\.mlp\..*": 5,
                "proj": 7,
            },
            "alpha_pattern": {r".*\.1\.mlp\.(up|gate)_proj": 17, "v_proj": 1, "k.proj": 64},
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
        {"target_modules": ["q_proj"], "init_lora_weights": False, "fan_in_fan_out": False},
        {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"embed_tokens": 2}},
        {"target_modules": r".*(q_proj|embed_tokens)", "alpha_pattern": {"embed_tokens": 3}},
        {"target_modules": ["model.embed_tokens"], "use_rslora": True, "init_lora_weights": "mica"},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 1]}},
    ],
)
def test_what_peft_saves_is_read_as_peft_meant_it(save: Save, fields: dict[str, Any]) -> None:
    config, weights, tuned = save(**fields)
    parsed = parse_adapter(config, weights)
    manifest = parsed.manifest
    assert by_name(manifest) == as_peft_sees_it(tuned)
    check_base(manifest, SPEC)
    state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    refs = [ref for module in manifest.modules for ref in (module.a, module.b)]
    refs += [each.ref for each in (*manifest.saved_modules, *manifest.trained_tokens)]
    assert len(refs) == len(state)
    for ref in refs:
        stored = torch.frombuffer(bytearray(parsed.view(ref)), dtype=torch.float32)
        assert torch.equal(stored.view(ref.shape), state[ref.name])


def test_lm_head_comes_with_a_frozen_copy(save: Save) -> None:
    config, weights, tuned = save(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    parsed = parse_adapter(config, weights)
    (ref,) = parsed.manifest.frozen_copies
    assert frozen_base_name(ref) == "lm_head.weight"
    stored = torch.frombuffer(bytearray(parsed.view(ref)), dtype=torch.float32)
    head = tuned.base_model.model.lm_head.base_layer.weight
    assert torch.equal(stored.view(head.shape), head)


@pytest.mark.parametrize(
    ("fields", "suffix", "count"),
    [
        ({"use_dora": True}, ".lora_magnitude_vector", 4),
        ({"lora_bias": True}, ".lora_B.bias", 4),
        ({"bias": "all"}, ".bias", 8),
        ({"bias": "lora_only"}, ".bias", 4),
    ],
)
def test_dora_and_biases_are_found_where_peft_saves_them(
    save: Save, fields: dict[str, Any], suffix: str, count: int
) -> None:
    torch.manual_seed(0)
    model = tiny_llama(attention_bias=True)
    config, weights, tuned = save(model, target_modules=["q_proj", "v_proj"], **fields)
    parsed = parse_adapter(config, weights)
    manifest = parsed.manifest
    check_base(manifest, SPEC)
    refs = [ref for module in manifest.modules for ref in module.refs[2:]]
    refs += [bias.ref for bias in manifest.biases]
    assert len(refs) == count
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft takes lora_B's bias for a broken matrix
        state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    assert {ref.name for ref in refs} == {name for name in state if name.endswith(suffix)}
    for ref in refs:
        stored = torch.frombuffer(bytearray(parsed.view(ref)), dtype=torch.float32)
        assert torch.equal(stored, state[ref.name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adapters(save: Save, dtype: str) -> None:
    model = tiny_llama().to(getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["q_proj"]), autocast_adapter_dtype=False
        )
    state = peft.get_peft_model_state_dict(tuned)
    import safetensors.torch

    config, _, _ = save(target_modules=["q_proj"])
    weights = safetensors.torch.save({k: v.contiguous() for k, v in state.items()})
    assert parse_adapter(config, weights).manifest.dtype == {"bfloat16": "BF16"}.get(dtype, "F16")


def test_a_model_without_head_has_shorter_names(save: Save) -> None:
    config, weights, tuned = save(tiny_llama().model, target_modules=["q_proj"])
    manifest = parse_adapter(config, weights).manifest
    assert manifest.layers_root == ""
    assert by_name(manifest) == as_peft_sees_it(tuned)
    check_base(manifest, SPEC)


def test_activated_lora(save: Save) -> None:
    config, weights, tuned = save(**ACTIVATED)
    manifest = parse_adapter(config, weights).manifest
    assert by_name(manifest) == as_peft_sees_it(tuned)
    assert manifest.config.invocation_tokens == (1, 2)
    check_base(manifest, SPEC)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["layers.0.mlp"]},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]},
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
        {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
        {"target_modules": ["q_proj"], "alora_invocation_tokens": [1], "task_type": None},
        {**ACTIVATED, "modules_to_save": ["lm_head"]},
        {**ACTIVATED, "trainable_token_indices": [3]},
    ],
)
def test_what_is_not_plain_lora_is_refused(save: Save, fields: dict[str, Any]) -> None:
    config, weights, _ = save(**fields)
    with pytest.raises(UnsupportedFeatureError):
        parse_adapter(config, weights)


NAMES = [
    f"{root}layers.{layer}.{module}"
    for root in ("model.", "")
    for layer in (0, 1, 11)
    for module in SPEC.layer_modules
] + ["lm_head"]
words = st.sampled_from(
    [
        "q_proj",
        "proj",
        "self_attn.k_proj",
        "mlp",
        "1.mlp.up_proj",
        "lm_head",
        *NAMES[:3],
        *NAMES[-3:],
    ]
)
regexes = st.sampled_from(
    [
        r".*q_proj",
        r"model\..*",
        r".*\.1\..*",
        r"(model\.)?layers\.\d\..*",
        r".*",
        r"lm_head",
        r"k.proj",
    ]
)
name_lists = st.lists(words, min_size=1, max_size=4)


@given(
    st.one_of(
        st.fixed_dictionaries({"target_modules": regexes}),
        st.fixed_dictionaries(
            {"target_modules": name_lists},
            optional={
                "layers_to_transform": st.integers(0, 2) | st.lists(st.integers(0, 11), max_size=2)
            },
        ),
        st.fixed_dictionaries(
            {
                "target_modules": name_lists,
                "layers_to_transform": st.lists(st.integers(0, 11), min_size=1, max_size=2),
                "layers_pattern": st.sampled_from(["layers", "l.yers", "h", ["h", "layers"], []]),
            }
        ),
    ),
    st.one_of(st.none(), regexes, name_lists),
)
def test_selection_agrees_with_peft(fields: dict[str, Any], excluded: Any) -> None:
    fields = {**fields, "exclude_modules": excluded, "peft_type": "LORA"}
    theirs = peft.LoraConfig(**{k: v for k, v in fields.items() if k != "peft_type"})
    ours = ModuleSelector(parse_config(json.dumps(fields).encode()))
    for name in NAMES:
        expected = bool(peft.tuners.tuners_utils.check_target_module_exists(theirs, name))
        assert ours.selects(name) == expected, name


@given(
    st.dictionaries(words | regexes, st.integers(1, 256), max_size=4),
    st.dictionaries(words | regexes, st.integers(-5, 64), max_size=4),
    st.booleans(),
)
def test_ranks_and_scalings_agree_with_peft(
    ranks: dict[str, int], alphas: dict[str, int], use_rslora: bool
) -> None:
    fields = {
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": use_rslora,
    }
    ours = ModuleSelector(parse_config(json.dumps(fields).encode()))
    key_of = peft.utils.other.get_pattern_key
    for name in NAMES:
        rank = ranks.get(key_of(list(ranks), name), 8)
        alpha = alphas.get(key_of(list(alphas), name), 8)
        assert ours.rank(name) == rank
        assert ours.scaling(name) == alpha / (rank**0.5 if use_rslora else rank)


def test_an_adapter_for_another_shape_is_refused(save: Save) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    config, weights, _ = save(model, target_modules=["q_proj"])
    with pytest.raises(AdapterMismatchError) as caught:
        check_base(parse_adapter(config, weights).manifest, SPEC)
    assert caught.value.reason == "SHAPE_MISMATCH"
