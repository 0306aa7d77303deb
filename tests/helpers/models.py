"""Tiny random models and PEFT adapters, written by transformers and peft themselves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 128
BASE_NAME = "tiny"
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, list[str] | str] = {
    "qv": ["q_proj", "v_proj"],
    "attention": ATTENTION,
    "mlp": MLP,
    "all-linear": "all-linear",
    "with-head": [*ATTENTION, *MLP, "lm_head"],
}


def make_model(architecture: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A float32 model with random weights; `changes` override fields of its config."""
    torch.manual_seed(seed)
    shape: dict[str, object] = {**_SHAPE, **changes}
    match architecture:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        case "mistral":
            model = MistralForCausalLM(
                MistralConfig(**{"head_dim": 24, "sliding_window": 24, **shape})
            )
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**{"tie_word_embeddings": True, **shape}))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 32, **shape}))
        case _:
            raise AssertionError(architecture)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # initialised to constants: prove they are used
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    return model.eval()


def save_model(model: PreTrainedModel, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def add_adapter(
    model: PreTrainedModel | PeftModel,
    name: str,
    path: Path,
    *,
    rank: int,
    target_modules: list[str] | str,
    seed: int,
    size: float = 0.08,
    **config: object,
) -> PeftModel:
    """Adds a random adapter to the model and saves it as peft does. Returns the PeftModel.

    size: standard deviation of the update's elements, about; large enough to change answers.
    """
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=target_modules,
        task_type="CAUSAL_LM",
        **config,  # pyright: ignore[reportArgumentType]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on tied heads and second adapters
        if isinstance(model, PeftModel):
            model.add_adapter(name, lora)
        else:
            model = get_peft_model(model, lora, adapter_name=name)
    for key, parameter in model.named_parameters():
        if f".{name}." in key and "lora_" in key:
            scale = (size / 2) ** 0.5 / (rank**0.25 if rank else 1.0)
            torch.nn.init.normal_(parameter, std=scale)
    saved = path.parent / f"{path.name}.saved"
    model.peft_config[name].base_model_name_or_path = BASE_NAME
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no hub to look the base model up
        model.save_pretrained(str(saved), selected_adapters=[name])
    (saved / name).rename(path)
    model.eval()
    return model


def read_config(path: Path) -> dict[str, object]:
    return json.loads((path / "adapter_config.json").read_text())
