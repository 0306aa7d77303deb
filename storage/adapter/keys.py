"""The tensor names of a PEFT LoRA file, e.g.
base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD
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
_HEAD = re.compile(_PREFIX + r"lm_head" + _PART)
_OUTER = r"(?:(?P<root>model\.)?(?P<embed>embed_tokens)|lm_head)"
_EMBEDDING = re.compile(
    _PREFIX + r"(?P<root>model\.)?embed_tokens\.lora_embedding_(?P<matrix>[AB])(?:\.default)?"
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
    (re.compile(r"norm\.weight$"), "modules_to_save: trained norms"),
)


@dataclass(frozen=True, slots=True)
class LoraKey:
    """layers_root: "model." or "". layer: None for modules outside the layers: "lm_head", and
    "embed_tokens", whose name begins with layers_root, too.

    part: "A" and "B" (the matrices), "lora_bias" (lora_B's own bias), "magnitude" (DoRA's), or
    "bias" (the base module's, trained along).
    """

    layers_root: str
    layer: int | None
    module: str
    part: str


@dataclass(frozen=True, slots=True)
class TokensKey:
    """Rows that stand in for some of the embedding's or the head's. module: as in `CopyKey`."""

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


def parse_key(name: str) -> LoraKey | TokensKey | CopyKey:
    """Raises: UnsupportedFeatureError for a known kind we do not apply, else BadWeightsError."""
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
        return LoraKey("", None, LM_HEAD, _part(found))
    found = _EMBEDDING.fullmatch(name)
    if found:
        return LoraKey(found["root"] or "", None, EMBED_TOKENS, found["matrix"])
    found = _TOKENS.fullmatch(name)
    if found:
        return TokensKey(found["root"] or "", _outer(found))
    found = _COPY.fullmatch(name)
    if found:
        return CopyKey(_outer(found), bool(found["wrapped"]))
    raise BadWeightsError(
        f"tensor {excerpt(name)} is not understood: expected "
        "base_model.model.model.layers.N.MODULE.lora_A.weight (or lora_B, or lm_head)",
        metadata={"tensor": name[:200]},
    )


def _outer(found: re.Match[str]) -> str:
    return EMBED_TOKENS if found["embed"] else LM_HEAD


def _part(found: re.Match[str]) -> str:
    if found["matrix"]:
        return found["matrix"]
    return next(name for name in ("lora_bias", "magnitude", "bias") if found[name])
