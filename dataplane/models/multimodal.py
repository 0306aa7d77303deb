"""Checkpoints of models that see and read: their text part is a decoder of a family we know.

Only the text part is read and served. Programs have named it in three ways, in checkpoints and as
modules: "language_model.model." with a head "language_model.lm_head", "model.language_model." with
a head "lm_head", and, beside "visual.", as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataplane.models.fields import unsupported
from dataplane.models.sections import without_sections

_ROOTS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    *((name, name) for name in ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")),
)

_OF_THE_WHOLE = (
    *("eos_token_id", "dtype", "torch_dtype"),
    *("quantization_config", "compression_config"),
)


@dataclass(frozen=True)
class TextPart:
    """architecture: whose decoder it is. model_type: of its text_config. defaults: what
    transformers takes those for that its text_config does not tell, where a config.json of its own
    must tell them, or means something else."""

    architecture: str
    model_type: str
    defaults: Mapping[str, Any]
    tie_word_embeddings: bool  # of a text_config that does not tell
    ignored: tuple[str, ...] = ()  # fields that count in the text part alone, and not in the whole
    ties_the_whole: bool = True  # a config.json that does not tell
    text_decides: bool = False  # a text_config that ties the head does so whatever the whole says
    may_be_flat: bool = False  # the whole's fields are the text_config's where that is missing
    never_slides: bool = False
    has_sections: bool = False  # in its rope


_QWEN2_VL: Mapping[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "rope_theta": 1_000_000.0,
}


def _qwen2_vl(model_type: str) -> TextPart:
    return TextPart(
        "Qwen2ForCausalLM",
        model_type,
        _QWEN2_VL,
        tie_word_embeddings=False,
        ties_the_whole=False,
        text_decides=True,
        may_be_flat=True,
        has_sections=True,
    )


TEXT_PARTS: Mapping[str, TextPart] = {
    "Gemma3ForConditionalGeneration": TextPart(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
        },
        tie_word_embeddings=True,
        ignored=("final_logit_softcapping",),
    ),
    "Mistral3ForConditionalGeneration": TextPart(
        "MistralForCausalLM",
        "mistral",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        tie_word_embeddings=False,
    ),
    "Qwen2VLForConditionalGeneration": _qwen2_vl("qwen2_vl_text"),
    "Qwen2_5_VLForConditionalGeneration": _qwen2_vl("qwen2_5_vl_text"),
    "Qwen3VLForConditionalGeneration": TextPart(
        "Qwen3ForCausalLM",
        "qwen3_vl_text",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 128000,
            "rope_theta": 500_000.0,
        },
        tie_word_embeddings=False,
        ties_the_whole=False,
        never_slides=True,
        has_sections=True,
    ),
}


def text_fields(part: TextPart, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The text part's config.json, as if it stood alone. fields: the whole model's.

    Raises: UnsupportedModelError.
    """
    text = _text_config(part, fields)
    model_type = text.get("model_type", part.model_type)
    if model_type != part.model_type:
        raise unsupported("text_config.model_type", model_type, part.model_type)
    for name in part.ignored:
        if text.get(name) is not None:
            raise unsupported(f"text_config.{name}", text[name], "absent")
    alone = {**part.defaults, **text, "architectures": [part.architecture]}
    if part.never_slides:
        alone["use_sliding_window"] = False
    if part.has_sections:
        alone = without_sections(alone)
    for name in _OF_THE_WHOLE:
        if fields.get(name) is not None:
            alone[name] = fields[name]
    if fields.get("dtype") is None and fields.get("torch_dtype") is not None:
        alone.pop("dtype", None)
    return alone


def _text_config(part: TextPart, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    text = fields.get("text_config")
    if text is None and part.may_be_flat:
        return {name: value for name, value in fields.items() if name != "model_type"}
    if not isinstance(text, Mapping):
        raise unsupported("text_config", text, "an object")
    return text


def is_tie_in_doubt(part: TextPart, fields: Mapping[str, Any]) -> bool:
    """Whether the whole model's config.json ties the head and its text part's does not.

    Versions of transformers go by one or the other, and agree that a head of the checkpoint's own
    counts. fields: the whole model's.
    Raises: UnsupportedModelError where the text part alone ties it.
    """
    whole = fields.get("tie_word_embeddings", part.ties_the_whole)
    text = _text_config(part, fields).get("tie_word_embeddings", part.tie_word_embeddings)
    for value in (whole, text):
        if value is not None and not isinstance(value, bool):
            raise unsupported("tie_word_embeddings", value, "true or false")
    if text and not whole and not part.text_decides:
        raise unsupported(
            "tie_word_embeddings",
            whole,
            "what text_config.tie_word_embeddings is (true if absent), as versions of transformers"
            " go by one or the other: set both alike",
        )
    return bool(whole) and not text


def text_name(name: str) -> str | None:
    """A tensor's name in the text part as if that stood alone; None for one of another part."""
    for root, alone in _ROOTS:
        if name.startswith(root):
            return alone + name.removeprefix(root)
    return None


def whole_names(module: str) -> tuple[str, ...]:
    """What a module of the text part is called in the whole model, in all ways."""
    name = f"{module}."
    return tuple(
        (root + name.removeprefix(alone)).removesuffix(".")
        for root, alone in _ROOTS
        if name.startswith(alone)
    )
