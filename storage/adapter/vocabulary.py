"""What an adapter may change of the embedding and the head, as its configuration asks for it.

Beside LoRA these are whole matrices of its own (modules_to_save) and rows for some tokens
(trainable_token_indices), both in PEFT's sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from storage.adapter.weights import TensorRef
from storage.errors import BadConfigError, UnsupportedFeatureError, excerpt

EMBED_TOKENS = "embed_tokens"
LM_HEAD = "lm_head"
MAX_TRAINED_TOKENS = 1 << 16
"""Of one module. Beyond that a whole matrix is the better form."""

_NAMES = {
    **{
        f"{root}{EMBED_TOKENS}": EMBED_TOKENS
        for root in ("", "model.", "language_model.", "model.language_model.")
    },
    f"language_model.model.{EMBED_TOKENS}": EMBED_TOKENS,
    LM_HEAD: LM_HEAD,
    f"language_model.{LM_HEAD}": LM_HEAD,
}


@dataclass(frozen=True, slots=True)
class SavedModule:
    """The adapter's own embedding or head, [vocab, hidden], in the place of the base's."""

    module: str
    ref: TensorRef


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Row i of `ref`, [len(indices), hidden], stands in for row indices[i] of the base's matrix."""

    module: str
    indices: tuple[int, ...]
    ref: TensorRef


def read_modules_to_save(value: object) -> tuple[str, ...]:
    """Of EMBED_TOKENS and LM_HEAD, in this order.

    Raises: BadConfigError, UnsupportedFeatureError.
    """
    if not value:
        return ()
    items = _list(value)
    if not items or not all(isinstance(item, str) for item in items):
        raise BadConfigError(f"modules_to_save must be a list of names, not {excerpt(value)}")
    found = {_module("modules_to_save", cast("str", item)) for item in items}
    return tuple(sorted(found))


def read_trained_tokens(value: object) -> Mapping[str, tuple[int, ...]]:
    """By module; those of a bare list are the embedding's.

    Raises: BadConfigError, UnsupportedFeatureError.
    """
    field = "trainable_token_indices"
    if not value:
        return {}
    if not isinstance(value, dict):
        return {EMBED_TOKENS: _indices(field, value)}
    by_module: dict[str, tuple[int, ...]] = {}
    for name, items in cast("dict[str, object]", value).items():
        module = _module(field, name)
        if module in by_module:
            raise BadConfigError(f"{field} names {module} twice")
        by_module[module] = _indices(f"{field}[{excerpt(name)}]", items)
    return by_module


def _list(value: object) -> list[object]:
    """Empty for what is none."""
    return cast("list[object]", value) if isinstance(value, list) else []


def _module(field: str, name: str) -> str:
    module = _NAMES.get(name)
    if module is None:
        raise UnsupportedFeatureError(
            f"adapter_config.json: {field} names {excerpt(name)}, which cannot be served: only"
            f" {EMBED_TOKENS} and {LM_HEAD} can; train other modules as LoRA (target_modules)",
            metadata={"field": field, "module": name[:200]},
        )
    return module


def _indices(label: str, value: object) -> tuple[int, ...]:
    items = _list(value)
    if not 0 < len(items) <= MAX_TRAINED_TOKENS:
        raise BadConfigError(
            f"{label} must be a list of 1 to {MAX_TRAINED_TOKENS} token ids, not {excerpt(value)};"
            " for more, use modules_to_save"
        )
    seen: set[int] = set()
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 31:
            raise BadConfigError(f"{label} holds {excerpt(item)}, which is no token id")
        if item in seen:
            raise BadConfigError(f"{label} names token {item} twice: it can have only one row")
        seen.add(item)
    return tuple(cast("list[int]", items))
