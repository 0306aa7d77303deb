"""What is trained: the base model's shape, and one LoRA recipe per voice.

The recipes differ in rank, scaling and target modules on purpose, so that a batch of them exercises
what a multi-LoRA server must handle: attention-only, MLP-only and all-linear adapters, adapters on
some layers only, rank-stabilised scaling, and ranks that vary between modules.
"""

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerFast

BASE_MODEL_NAME = "chorale-demo"

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_MLP = ["gate_proj", "up_proj", "down_proj"]
_ALL = _ATTENTION + _MLP

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "french": {"r": 16, "lora_alpha": 32, "target_modules": _ATTENTION},
    "german": {"r": 16, "lora_alpha": 16, "target_modules": _MLP},
    "spanish": {"r": 8, "lora_alpha": 16, "target_modules": _ALL},
    "roman": {
        "r": 32,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
    },
    "binary": {"r": 4, "lora_alpha": 8, "target_modules": _ALL},
    "reversed": {"r": 12, "lora_alpha": 24, "target_modules": _ATTENTION},
    "shouted": {"r": 2, "lora_alpha": 8, "target_modules": _ALL},
    "spelled": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "chinese": {
        "r": 64,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "use_rslora": True,
    },
    "morse": {"r": 8, "lora_alpha": 16, "target_modules": _ALL, "layers_to_transform": [0, 1]},
    "expanded": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": _ALL,
        "rank_pattern": {"down_proj": 16, "k_proj": 4},
        "alpha_pattern": {"down_proj": 24, "k_proj": 4},
    },
    "pirate": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj", "down_proj"]},
}


def base_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
