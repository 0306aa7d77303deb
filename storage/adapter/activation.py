"""Activated LoRA (aLoRA): an adapter that applies from its invocation tokens on.

As in PEFT, tokens before the last place of `alora_invocation_tokens` in the prompt are the base
model's: their keys and values are the very ones that the base model computes, and are shared with
it. So whatever PEFT would apply to those tokens, too, cannot be part of such an adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from storage.adapter.vocabulary import EMBED_TOKENS
from storage.errors import BadConfigError, UnsupportedFeatureError, excerpt

if TYPE_CHECKING:
    from storage.adapter.config import AdapterConfig

FIELD = "alora_invocation_tokens"
MAX_INVOCATION_TOKENS = 256
"""Each request's ticket carries them."""

# In whatever form of file; transformers hands these their tokens in another shape.
_MIXTURE_PARTS = ("mlp.experts", "mlp.shared_expert", "block_sparse_moe.")
_ROUTER = "mlp.gate"


def read_invocation_tokens(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Empty for an adapter that applies to all tokens. Raises: BadConfigError."""
    value: object = fields.get(FIELD)
    if value is None:
        return ()
    items = cast("list[object]", value) if isinstance(value, list) else []
    if not 0 < len(items) <= MAX_INVOCATION_TOKENS:
        raise BadConfigError(
            f"{FIELD} must be null or a list of 1 to {MAX_INVOCATION_TOKENS} token ids, not"
            f" {excerpt(cast('object', value))}"
        )
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 31:
            raise BadConfigError(f"{FIELD} holds {excerpt(item)}, which is no token id")
    return tuple(cast("list[int]", items))


def refuse_unactivated(config: AdapterConfig, fields: Mapping[str, Any]) -> None:
    """What of a configuration PEFT would not activate, or does not know together with it.

    Raises: UnsupportedFeatureError.
    """
    if not config.invocation_tokens:
        return
    init: object = fields.get("init_lora_weights")
    task: object = fields.get("task_type")
    everywhere = "PEFT applies that to all tokens, and those before the invocation are the base's"
    for field, is_set, why in (
        ("task_type", task != "CAUSAL_LM", "PEFT activates an adapter of CAUSAL_LM only"),
        ("use_dora", config.use_dora, "PEFT does not define both"),
        ("init_lora_weights", _is_mica(init), "PEFT does not define both"),
        ("target_parameters", bool(config.target_parameters), "PEFT does not define both"),
        ("bias", config.bias != "none", everywhere),
        ("modules_to_save", bool(config.modules_to_save), everywhere),
        ("trainable_token_indices", bool(config.trained_tokens), everywhere),
    ):
        if is_set:
            raise UnsupportedFeatureError(
                f"adapter_config.json: {field}={excerpt(fields.get(field))} cannot be served"
                f" together with {FIELD}: {why}; train the adapter without one of them",
                metadata={"field": field},
            )


def refuse_unactivated_modules(
    config: AdapterConfig, modules: Iterable[str], biased: Iterable[str]
) -> None:
    """modules, biased: by name within a layer, those with a LoRA, and those of whose base bias the
    file has another one. Raises: UnsupportedFeatureError."""
    if not config.invocation_tokens:
        return
    for module in modules:
        if module in (EMBED_TOKENS, _ROUTER) or module.startswith(_MIXTURE_PARTS):
            raise _unsupported(module, "LoRA on", "which PEFT does not define there")
    for module in biased:  # PEFT saves a head's along with it
        raise _unsupported(module, "a bias of", "as PEFT applies that to all tokens")


def _unsupported(module: str, what: str, why: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        f"{what} {excerpt(module)} cannot be served together with {FIELD}, {why}: train the adapter"
        " without one of them",
        metadata={"field": FIELD, "module": module[:200]},
    )


def _is_mica(init: object) -> bool:
    return isinstance(init, str) and init.lower() == "mica"
