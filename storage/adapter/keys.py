"""The tensor names of a PEFT LoRA file, e.g.
base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt

_PREFIX = r"base_model\.model\."
# What comes before "layers." and "embed_tokens." in models of text, and in those that see and read.
_ROOT = r"(?P<root>model\.(?:language_model\.)?|language_model\.(?:model\.)?)?"
_HEAD_ROOT = r"(?P<head_root>language_model\.)?"
# What only images go through: LoRA in all its parts, and biases that were trained along.
_VISION = re.compile(
    _PREFIX + r"(?:model\.)?(?:vision_tower|multi_modal_projector|visual)\.(?:.*\.)?"
    r"(?:lora_[AB](?:\.default)?\.(?:weight|bias)|lora_embedding_[AB](?:\.default)?"
    r"|lora_magnitude_vector(?:\.default)?(?:\.weight)?|bias)"
)
_BESIDE_TEXT = re.compile(_PREFIX + r"visual\..*")
_NAME = r"(?!lora_)[A-Za-z_][A-Za-z0-9_]*"
# Of a mixture, with transformers 4.
_EXPERT = r"(?:\.experts\.(?:0|[1-9][0-9]{0,3})\." + _NAME + r")"
_PART = (
    r"\.(?:lora_(?P<matrix>[AB])(?:\.default)?\.weight"
    r"|(?P<lora_bias>lora_B(?:\.default)?\.bias)"
    # PEFT leaves out ".weight" when it saves; its own state dict has it.
    r"|(?P<magnitude>lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
    r"|(?P<bias>(?:base_layer\.)?bias))"
)
_LAYER = re.compile(
    _PREFIX + _ROOT + r"layers\.(?P<layer>0|[1-9][0-9]{0,4})"
    r"\.(?P<module>" + _NAME + r"(?:\." + _NAME + r")*?" + _EXPERT + r"?)" + _PART
)
_HEAD = re.compile(_PREFIX + _HEAD_ROOT + r"lm_head" + _PART)
_OUTER = r"(?:" + _ROOT + r"(?P<embed>embed_tokens)|" + _HEAD_ROOT + r"lm_head)"
_EMBEDDING = re.compile(
    _PREFIX + _ROOT + r"embed_tokens\.lora_embedding_(?P<matrix>[AB])(?:\.default)?"
)
_TOKENS = re.compile(_PREFIX + _OUTER + r"\.token_adapter\.trainable_tokens_delta(?:\.default)?")
_COPY = re.compile(_PREFIX + _OUTER + r"(?P<wrapped>\.base_layer)?\.weight")
_UNSUPPORTED = (
    (re.compile(r"(?<!\.embed_tokens)\.lora_embedding_[AB]\b"), "LoRA on embeddings"),
    (re.compile(r"\.embed_tokens\.lora_(?!embedding_)\w+"), "DoRA or a bias on embeddings"),
    (
        re.compile(r"\.modules_to_save\b|\.original_module\b|\.token_adapter\.base_layer\b"),
        "the inside of a wrapper: save the adapter without save_embedding_layers=True",
    ),
    (
        re.compile(r"\.mlp\.shared_expert_gate\."),
        "LoRA on the shared expert's gate: leave it out, as with"
        " exclude_modules=['shared_expert_gate']",
    ),
    (re.compile(r"norm\.weight$"), "modules_to_save: trained norms"),
    (re.compile(r"norm\.bias$"), "bias='all' of norms: train with bias='lora_only'"),
)


LAYERS_ROOTS = ("model.", "", "model.language_model.", "language_model.model.", "language_model.")
"""Before "layers." in the names of modules: of a model of text with its head and without, of one
that sees, too, as transformers has it since 4.52 and had it before, and of one without its head."""


def head_root(layers_root: str) -> str:
    """What comes before "lm_head" in the same model."""
    return "language_model." if layers_root == "language_model.model." else ""


@dataclass(frozen=True, slots=True)
class LoraKey:
    """layers_root: one of LAYERS_ROOTS. layer: None for modules outside the layers: "embed_tokens",
    whose name begins with layers_root, too, and "lm_head", which has its `head_root` there.

    part: "A" and "B" (the matrices), "lora_bias" (lora_B's own bias), "magnitude" (DoRA's), or
    "bias" (the base module's, trained along).
    """

    layers_root: str
    layer: int | None
    module: str
    part: str


@dataclass(frozen=True, slots=True)
class TokensKey:
    """Rows that stand in for some of the embedding's or the head's. layers_root: as in `LoraKey`.
    module: as in `CopyKey`."""

    layers_root: str
    module: str


@dataclass(frozen=True, slots=True)
class CopyKey:
    """A whole embedding or head. module: "embed_tokens" or "lm_head". is_wrapped: it lies below a
    LoRA, as "base_layer"."""

    module: str
    is_wrapped: bool

    @property
    def base_name(self) -> str:
        """ "embed_tokens.weight" or "lm_head.weight"."""
        return f"{self.module}.weight"


@dataclass(frozen=True, slots=True)
class VisionKey:
    """Of a part that text does not go through. is_beside_text: in a model whose layers are named as
    those of a model of text (Qwen's, before transformers 4.52)."""

    is_beside_text: bool


def parse_key(name: str) -> LoraKey | TokensKey | CopyKey | VisionKey:
    """Raises: UnsupportedFeatureError for a known kind we do not apply, else BadWeightsError."""
    if _VISION.fullmatch(name):
        return VisionKey(_BESIDE_TEXT.fullmatch(name) is not None)
    for pattern, feature in _UNSUPPORTED:
        if pattern.search(name):
            raise UnsupportedFeatureError(
                f"tensor {excerpt(name)} is not served: it belongs to {feature}",
                metadata={"tensor": name[:200]},
            )
    found = _LAYER.fullmatch(name)
    if found:
        return LoraKey(found["root"] or "", int(found["layer"]), found["module"], _part(found))
    found = _HEAD.fullmatch(name)
    if found:
        return LoraKey(found["head_root"] or "", None, LM_HEAD, _part(found))
    found = _EMBEDDING.fullmatch(name)
    if found:
        return LoraKey(found["root"] or "", None, EMBED_TOKENS, found["matrix"])
    found = _TOKENS.fullmatch(name)
    if found:
        return TokensKey(_outer_root(found), _outer(found))
    found = _COPY.fullmatch(name)
    if found:
        return CopyKey(_outer(found), bool(found["wrapped"]))
    raise BadWeightsError(
        f"tensor {excerpt(name)} is not understood: expected "
        "base_model.model.model.layers.N.MODULE.lora_A.weight (or lora_B, lm_head, or "
        "model.language_model.layers)",
        metadata={"tensor": name[:200]},
    )


def _outer_root(found: re.Match[str]) -> str:
    return found["root" if found["embed"] else "head_root"] or ""


def _outer(found: re.Match[str]) -> str:
    return EMBED_TOKENS if found["embed"] else LM_HEAD


def _part(found: re.Match[str]) -> str:
    if found["matrix"]:
        return found["matrix"]
    return next(name for name in ("lora_bias", "magnitude", "bias") if found[name])
