"""The committed demo model: its tokenizer, its chat template and its adapters' files."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from examples.demo.voices import VOICES

DEMO = Path(__file__).parents[2] / "examples" / "demo"
MAX_WEIGHT_BYTES = 6 * 2**20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(DEMO / "model")


@pytest.mark.parametrize(
    "text", ["407 =", " four", "héllo  wörld\n\n漢字🙂\t x , . 's don't", "\x00\x7f", " a  ", ""]
)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_prompts_begin_with_bos(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer("407 =").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]


def test_a_chat_of_one_message_is_the_plain_prompt(tokenizer: PreTrainedTokenizerFast):
    chat = [{"role": "user", "content": "407"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer("407 =").input_ids


def test_chat_history_is_rendered_as_trained(tokenizer: PreTrainedTokenizerFast):
    chat = [
        {"role": "system", "content": "french"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "un"},
        {"role": "user", "content": "2"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<s>[french] 1 = un</s>2 ="


def test_generation_stops_at_the_tokenizers_eos(tokenizer: PreTrainedTokenizerFast):
    generation = json.loads((DEMO / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id


def test_each_voice_has_an_adapter_and_no_other():
    assert {p.name for p in (DEMO / "adapters").iterdir()} == set(VOICES)


@pytest.mark.parametrize("voice", VOICES)
def test_adapter_holds_the_ranks_its_config_states(voice: str):
    folder = DEMO / "adapters" / voice
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "chorale-demo"
    with safe_open(folder / "adapter_model.safetensors", "np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    seen = set()
    for name, shape in shapes.items():
        module, matrix = name.removesuffix(".weight").rsplit(".", 2)[-2:]
        rank = config["rank_pattern"].get(module, config["r"])
        assert shape[0 if matrix == "lora_A" else 1] == rank
        seen.add(module)
    assert seen == set(config["target_modules"])


def test_recipes_differ():
    configs = [
        json.loads((DEMO / "adapters" / voice / "adapter_config.json").read_text())
        for voice in VOICES
    ]
    assert len({config["r"] for config in configs}) >= 5
    assert len({frozenset(config["target_modules"]) for config in configs}) >= 4
    assert any(config["use_rslora"] for config in configs)
    assert any(config["layers_to_transform"] for config in configs)
    assert any(config["rank_pattern"] for config in configs)


def test_weights_stay_small_enough_to_commit():
    assert sum(p.stat().st_size for p in DEMO.rglob("*.safetensors")) <= MAX_WEIGHT_BYTES
