"""Tiny random models and PEFT adapters, written by transformers and peft themselves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    ArceeConfig,
    ArceeForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HeliumConfig,
    HeliumForCausalLM,
    Jais2Config,
    Jais2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SeedOssConfig,
    SeedOssForCausalLM,
    SiglipVisionConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
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
    "embedding": ["embed_tokens"],
}
FUSED_TARGETS: dict[str, list[str] | str] = {
    "qv": ["qkv_proj"],
    "attention": ["qkv_proj", "o_proj"],
    "mlp": ["gate_up_proj", "down_proj"],
    "all-linear": "all-linear",
    "with-head": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"],
}


def _targets(attention: list[str], mlp: list[str]) -> dict[str, list[str] | str]:
    return {
        "qv": ["q_proj", "v_proj"],
        "attention": attention,
        "mlp": mlp,
        "all-linear": "all-linear",
        "with-head": [*attention, *mlp, "lm_head"],
    }


_UNGATED_TARGETS = _targets(ATTENTION, ["up_proj", "down_proj"])
TARGETS_OF: dict[str, dict[str, list[str] | str]] = {
    "phi3": FUSED_TARGETS,
    "glm": _targets(ATTENTION, ["gate_up_proj", "down_proj"]),
    "glm4": _targets(ATTENTION, ["gate_up_proj", "down_proj"]),
    "starcoder2": _targets(ATTENTION, ["c_fc", "c_proj"]),
    "phi": _targets(["q_proj", "k_proj", "v_proj", "dense"], ["fc1", "fc2"]),
    "nemotron": _UNGATED_TARGETS,
    "jais2": _UNGATED_TARGETS,
    "arcee": _UNGATED_TARGETS,
}
"""Of architectures whose modules have other names than TARGETS."""
_ALTERNATING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 20,
}
_WHOLE_HEADS = {"head_dim": 16}
MORE_FAMILIES: dict[str, tuple[type, type, dict[str, object]]] = {
    "glm": (GlmConfig, GlmForCausalLM, {"head_dim": 24}),
    "glm4": (Glm4Config, Glm4ForCausalLM, _WHOLE_HEADS),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": (Cohere2Config, Cohere2ForCausalLM, {"attention_bias": True, **_ALTERNATING}),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM, {"sliding_window": 24}),
    "phi": (PhiConfig, PhiForCausalLM, {}),
    "stablelm": (StableLmConfig, StableLmForCausalLM, {"use_qkv_bias": True}),
    "nemotron": (NemotronConfig, NemotronForCausalLM, {}),
    "jais2": (Jais2Config, Jais2ForCausalLM, {}),
    "arcee": (ArceeConfig, ArceeForCausalLM, {}),
    "helium": (HeliumConfig, HeliumForCausalLM, _WHOLE_HEADS),
    "ernie4.5": (Ernie4_5Config, Ernie4_5ForCausalLM, {"head_dim": 32, "use_bias": True}),
    "exaone4": (Exaone4Config, Exaone4ForCausalLM, _ALTERNATING),
    "ministral": (MinistralConfig, MinistralForCausalLM, {"head_dim": 24, **_ALTERNATING}),
}
_GEMMA: dict[str, object] = {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 20,
    "num_hidden_layers": 4,
    "final_logit_softcapping": 3.0,
    "attn_implementation": "eager",
}
_GRANITE: dict[str, object] = {
    "embedding_multiplier": 5.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 3.0,
    "rms_norm_eps": 0.1,  # large enough to matter
}
_MOE: dict[str, object] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}
_QWEN_MOE: dict[str, object] = {
    **_MOE,
    "num_hidden_layers": 4,
    "decoder_sparse_step": 2,
    "shared_expert_intermediate_size": 80,
}
_VISION: dict[str, object] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_QWEN_SIGHT: dict[str, object] = {"depth": 2, "num_heads": 2, "patch_size": 4, "in_channels": 3}
_MROPE: dict[str, object] = {"rope_type": "default", "rope_theta": 100.0}
_QWEN_VL: dict[str, tuple[type, type, dict[str, object], dict[str, object]]] = {
    "qwen2-vl": (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        {"rope_parameters": {**_MROPE, "mrope_section": [2, 3, 3]}},
        {**_QWEN_SIGHT, "embed_dim": 16, "hidden_size": 64},
    ),
    "qwen2.5-vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        {"rope_parameters": {**_MROPE, "mrope_section": [2, 3, 3]}},
        {**_QWEN_SIGHT, "hidden_size": 16, "out_hidden_size": 64, "intermediate_size": 24},
    ),
    "qwen3-vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        {
            "head_dim": 32,
            "rope_parameters": {**_MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        },
        {
            **_QWEN_SIGHT,
            "hidden_size": 16,
            "out_hidden_size": 64,
            "intermediate_size": 24,
            "deepstack_visual_indexes": [0],
        },
    ),
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
        case "gemma2":
            # A cap that scores reach, or it would prove nothing.
            model = Gemma2ForCausalLM(
                Gemma2Config(**{**shape, **_GEMMA, "attn_logit_softcapping": 1.5, **changes})
            )
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"] * 2
            model = Gemma3ForCausalLM(
                Gemma3TextConfig(**{**shape, **_GEMMA, "layer_types": kinds, **changes})
            )
        case "gemma3-vision":
            text = {"final_logit_softcapping": None, **changes}  # which it would ignore
            model = Gemma3ForConditionalGeneration(
                Gemma3Config(
                    text_config=make_model("gemma3", **text).config,
                    vision_config=SiglipVisionConfig(**_VISION),
                    mm_tokens_per_image=4,
                    image_token_index=VOCAB - 1,
                    tie_word_embeddings=changes.get("tie_word_embeddings", True),
                )
            )
        case "mistral3":
            text = make_model("mistral", **changes).config
            model = Mistral3ForConditionalGeneration(
                Mistral3Config(
                    text_config=text,
                    vision_config=PixtralVisionConfig(**_VISION),
                    image_token_index=VOCAB - 1,
                    tie_word_embeddings=text.tie_word_embeddings,
                )
            )
        case "qwen2-vl" | "qwen2.5-vl" | "qwen3-vl":
            config_class, model_class, text, sight = _QWEN_VL[architecture]
            whole = config_class(
                text_config={**shape, **text, **changes},
                vision_config=sight,
                tie_word_embeddings=changes.get("tie_word_embeddings", False),
            )
            model = model_class(whole)
        case "olmo2":
            model = Olmo2ForCausalLM(Olmo2Config(**shape))
        case "olmo3":
            kinds = ["sliding_attention", "full_attention", "sliding_attention"]
            layers = {"layer_types": kinds, "sliding_window": 20}
            model = Olmo3ForCausalLM(Olmo3Config(**{**shape, **layers, **changes}))
        case "gemma":
            model = GemmaForCausalLM(GemmaConfig(**{**shape, "head_dim": 24, **changes}))
        case "granite":
            model = GraniteForCausalLM(GraniteConfig(**{**shape, **_GRANITE, **changes}))
        case "smollm3":
            layers = {"num_hidden_layers": 4, "no_rope_layer_interval": 2}
            model = SmolLM3ForCausalLM(SmolLM3Config(**{**shape, **layers, **changes}))
        case "seed-oss":
            model = SeedOssForCausalLM(SeedOssConfig(**{**shape, "head_dim": 32, **changes}))
        case "mixtral":
            experts = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 24}
            model = MixtralForCausalLM(MixtralConfig(**{**shape, **experts, **changes}))
        case "qwen2-moe":  # every second layer is dense
            model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**shape, **_QWEN_MOE, **changes}))
        case "qwen3-moe":
            experts = {"head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [1]}
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **_MOE, **experts, **changes}))
        case "phi3":
            model = Phi3ForCausalLM(Phi3Config(**{"sliding_window": 24, **shape}))
        case _:
            config_class, model_class, fields = MORE_FAMILIES[architecture]
            model = model_class(config_class(**{**shape, **fields, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # some initialise it to zeros, which tells nothing
            torch.nn.init.normal_(parameter, std=0.3)
    gemma = architecture.startswith("gemma")  # its norms multiply by 1 + weight
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # initialised to constants: prove they are used
            torch.nn.init.normal_(
                parameter, mean=1.0 if "norm" in name and not gemma else 0.0, std=0.1
            )
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
        mine = f".{name}." in f"{key}."
        if mine and ("trainable_tokens_delta" in key or ".modules_to_save." in key):
            parameter.data += size * torch.randn_like(parameter)
        elif mine and "lora_" in key:
            if "magnitude" in key:  # it starts as the norms of the base's rows
                parameter.data *= torch.empty_like(parameter).uniform_(0.7, 1.4)
                continue
            scale = (size / 2) ** 0.5 / (rank**0.25 if rank else 1.0)
            torch.nn.init.normal_(parameter, std=scale)
        elif parameter.requires_grad and key.endswith(".bias"):  # a base bias, trained along
            torch.nn.init.normal_(parameter, std=0.3)
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
