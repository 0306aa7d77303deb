"""The tensor names of a PEFT LoRA file, e.g.
base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt

_PREFIX = r"base_model\.model\."
_NAME = r"(?!lora_)[A-Za-z_][A-Za-z0-9_]*"
_PART = (
    r"\.(?:lora_(?P<matrix>[AB])(?:\.default)?\.weight"
    r"|(?P<lora_bias>lora_B(?:\.default)?\.bias)"
    # PEFT leaves out ".weight" when it saves; its own state dict has it.
    r"|(?P<magnitude>lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
    r"|(?P<bias>(?:base_layer\.)?bias))"
)
_LAYER = re.compile(
    _PREFIX + r"(?P<root>model\.)?layers\.(?P<layer>0|[1-9][0-9]{0,4})"
    r"\.(?P<module>" + _NAME + r"(?:\." + _NAME + r")*?)" + _PART
)
_HEAD = re.compile(_PREFIX + r"(?P<module>lm_head)" + _PART)
_FROZEN = re.compile(
    _PREFIX + r"(?:(?:model\.)?(?P<embed>embed_tokens)\.weight|lm_head(?:\.base_layer)?\.weight)"
)
_UNSUPPORTED = (
    (
        re.compile(r"\.lora_embedding_[AB]\b|\.embed_tokens\.(?:base_layer|lora_\w+)\b"),
        "LoRA on embeddings",
    ),
    (re.compile(r"\.modules_to_save\b|\.original_module\b"), "modules_to_save"),
    (re.compile(r"\.trainable_tokens_"), "trainable tokens"),
)


@dataclass(frozen=True, slots=True)
class LoraKey:
    """layers_root: "model." or "". layer: None for modules outside the layers.

    part: "A" and "B" (the matrices), "lora_bias" (lora_B's own bias), "magnitude" (DoRA's), or
    "bias" (the base module's, trained along).
    """

    layers_root: str
    layer: int | None
    module: str
    part: str


@dataclass(frozen=True, slots=True)
class FrozenKey:
    """A copy of a base weight; base_name: "lm_head.weight" or "embed_tokens.weight"."""

    base_name: str


def parse_key(name: str) -> LoraKey | FrozenKey:
    """Raises: UnsupportedFeatureError for a known kind we do not apply, else BadWeightsError."""
    for pattern, feature in _UNSUPPORTED:
        if pattern.search(name):
            raise UnsupportedFeatureError(
                f"tensor {excerpt(name)} belongs to {feature}, which is not served",
                metadata={"tensor": name[:200]},
            )
    found = _LAYER.fullmatch(name)
    if found:
        return LoraKey(found["root"] or "", int(found["layer"]), found["module"], _part(found))
    found = _HEAD.fullmatch(name)
    if found:
        return LoraKey("", None, found["module"], _part(found))
    found = _FROZEN.fullmatch(name)
    if found:
        return FrozenKey("embed_tokens.weight" if found["embed"] else "lm_head.weight")
    raise BadWeightsError(
        f"tensor {excerpt(name)} is not understood: expected "
        "base_model.model.model.layers.N.MODULE.lora_A.weight (or lora_B, or lm_head)",
        metadata={"tensor": name[:200]},
    )


def _part(found: re.Match[str]) -> str:
    if found["matrix"]:
        return found["matrix"]
    return next(name for name in ("lora_bias", "magnitude", "bias") if found[name])
