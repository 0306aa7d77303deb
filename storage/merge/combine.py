"""From components to the two files of the adapter that they make together."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from storage.adapter.manifest import LoraModule, ParsedAdapter, full_name
from storage.adapter.vocabulary import EMBED_TOKENS
from storage.adapter.weights import TensorRef
from storage.errors import AdapterTooLargeError
from storage.files import AdapterFiles
from storage.limits import AdapterLimits
from storage.merge import arithmetic
from storage.merge.arithmetic import Values
from storage.merge.recipe import Component, Recipe, refused

_ROOT = "model."
_ITEM_BYTES = 4

At = tuple[int | None, str]  # layer and module


class _Part(NamedTuple):
    component: Component
    parsed: ParsedAdapter
    module: LoraModule


class _Place(NamedTuple):
    """A module of the merge. in_features, out_features: of the base's."""

    name: str
    parts: list[_Part]
    rank: int
    in_features: int
    out_features: int


def merged_files(
    recipe: Recipe,
    components: Sequence[ParsedAdapter],
    limits: AdapterLimits,
    check: Callable[[], None] = lambda: None,
) -> AdapterFiles:
    """A PEFT adapter in float32, the same bytes everywhere.

    components: in the recipe's order. check: called between matrices; may raise to end the work.
    CPU work over all weights: run it off the event loop.
    Raises: MergeRefusedError naming component and reason, AdapterTooLargeError.
    """
    for component, parsed in zip(recipe.components, components, strict=True):
        _refuse_unmergeable(component, parsed)
    places = _places(recipe, components, limits)
    header, extents = _header(places)
    size = extents[-1][1]
    if size > limits.max_weights_bytes:
        raise AdapterTooLargeError(
            f"the merge would have {size} bytes in float32; the limit is "
            f"{limits.max_weights_bytes} (--max-adapter-bytes)",
            metadata={"size_bytes": str(size), "limit_bytes": str(limits.max_weights_bytes)},
        )
    weights = bytearray(size)
    weights[: len(header)] = header
    for number, place in enumerate(places):
        for matrix, (start, end) in zip("AB", extents[2 * number : 2 * number + 2], strict=True):
            check()
            made = _matrix(recipe, place, matrix)
            if not np.isfinite(made).all():
                raise refused(
                    "weight",
                    f"makes {place.name} lora_{matrix} larger than float32 goes: use smaller ones",
                )
            weights[start:end] = made.astype("<f4", copy=False).data.cast("B")
    return AdapterFiles(_config(places, components), memoryview(weights).toreadonly(), recipe.uri)


def _refuse_unmergeable(component: Component, parsed: ParsedAdapter) -> None:
    manifest, config = parsed.manifest, parsed.manifest.config
    for is_there, what in (
        (config.use_dora, "is a DoRA adapter (use_dora), whose factor depends on the sum"),
        (
            config.invocation_tokens,
            "is an activated LoRA (alora_invocation_tokens), which applies to a part of the prompt",
        ),
        (config.lora_bias, "has biases of lora_B (lora_bias)"),
        (config.bias != "none" or manifest.biases, "has trained base biases (bias)"),
        (manifest.has_mixtures, "changes a mixture of experts"),
        (manifest.saved_modules, "has an embedding or head of its own (modules_to_save)"),
        (manifest.trained_tokens, "has trained tokens (trainable_token_indices)"),
        (config.ensure_weight_tying, "ties embedding and head (ensure_weight_tying)"),
        (
            manifest.frozen_copies,
            "carries a copy of the base's embedding or head: save it with "
            "save_embedding_layers=False",
        ),
    ):
        if is_there:
            raise refused(
                "components",
                f"cannot be merged: {component.name} {what}; only plain LoRA adapters can",
                component=component.name,
            )


def _places(
    recipe: Recipe, components: Sequence[ParsedAdapter], limits: AdapterLimits
) -> list[_Place]:
    found: dict[At, list[_Part]] = {}
    for component, parsed in zip(recipe.components, components, strict=True):
        for module in parsed.manifest.modules:
            at = module.layer, module.module
            found.setdefault(at, []).append(_Part(component, parsed, module))
    ordered = sorted(found, key=lambda at: (at[0] is None, at[0] or 0, at[1]))
    return [_place(recipe, full_name(_ROOT, *at), found[at], limits) for at in ordered]


def _place(recipe: Recipe, name: str, parts: list[_Part], limits: AdapterLimits) -> _Place:
    first = parts[0]
    num_in, num_out = first.module.a.shape[1], first.module.b.shape[0]
    rank = first.module.rank
    for part in parts[1:]:
        shape = part.module.a.shape[1], part.module.b.shape[0]
        if shape != (num_in, num_out):
            raise refused(
                "components",
                f"are of different base models: {name} maps {num_in} to {num_out} in "
                f"{first.component.name}, {shape[0]} to {shape[1]} in {part.component.name}",
                component=part.component.name,
            )
        if recipe.strategy == "cat":
            rank += part.module.rank
        elif part.module.rank != rank:
            raise refused(
                "components",
                f"of strategy {recipe.strategy} must have one rank: {name} has {rank} in "
                f"{first.component.name}, {part.module.rank} in {part.component.name}; cat takes "
                "any",
                component=part.component.name,
            )
    if rank > limits.max_rank:
        raise refused(
            "components",
            f"have rank {rank} together in {name}, and {limits.max_rank} is the limit of strategy "
            "cat: merge fewer, or use linear",
        )
    return _Place(name, parts, rank, num_in, num_out)


def _matrix(recipe: Recipe, place: _Place, matrix: str) -> Values:
    """lora_A [rank, in] or lora_B [out, rank] of the merge, flat; its scaling is 1."""
    tensors = [_values(part, matrix) for part in place.parts]
    factors = [part.component.weight * part.module.scaling for part in place.parts]
    if recipe.strategy == "cat":
        if matrix == "A":
            scaled = zip(tensors, factors, strict=True)
            return np.concatenate([arithmetic.scaled(each, factor) for each, factor in scaled])
        rows = [each.reshape(place.out_features, -1) for each in tensors]
        return np.concatenate(rows, axis=1).reshape(-1)
    # A weight is shared between both matrices; its sign goes to one.
    factors = [
        math.sqrt(abs(factor)) * (-1.0 if factor < 0 and matrix == "A" else 1.0)
        for factor in factors
    ]
    if recipe.density is not None:
        tensors = _pruned(recipe, recipe.density, place, matrix, tensors)
    if recipe.majority_sign:
        return arithmetic.elected_mean(tensors, factors, recipe.majority_sign)
    return arithmetic.weighted_sum(tensors, factors)


def _pruned(
    recipe: Recipe, density: float, place: _Place, matrix: str, tensors: list[Values]
) -> list[Values]:
    if recipe.seed is None:
        kept = [arithmetic.keep_largest(each, density) for each in tensors]
    else:
        kept = [
            arithmetic.keep_drawn(each, density, _draw_key(recipe.seed, part, place, matrix))
            for each, part in zip(tensors, place.parts, strict=True)
        ]
    if any(each.any() for each in tensors) and not any(each.any() for each in kept):
        raise refused("density", f"{density!r} leaves nothing of {place.name} lora_{matrix}")
    return kept


def _values(part: _Part, matrix: str) -> Values:
    ref: TensorRef = part.module.a if matrix == "A" else part.module.b
    return arithmetic.widened(part.parsed.view(ref), ref.dtype)


def _draw_key(seed: int, part: _Part, place: _Place, matrix: str) -> bytes:
    return f"{seed} {part.component.digest} {place.name} {matrix}".encode()


def _header(places: Sequence[_Place]) -> tuple[bytes, list[tuple[int, int]]]:
    """The beginning of a safetensors file, and where A and B of each place lie in it."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    extents: list[tuple[int, int]] = []
    position = 0
    for place in places:
        shapes = (place.rank, place.in_features), (place.out_features, place.rank)
        for matrix, shape in zip("AB", shapes, strict=True):
            end = position + shape[0] * shape[1] * _ITEM_BYTES
            described[_key(place.name, matrix)] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            extents.append((position, end))
            position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, [(len(header) + start, len(header) + end) for start, end in extents]


def _key(name: str, matrix: str) -> str:
    if name == _ROOT + EMBED_TOKENS:
        return f"base_model.model.{name}.lora_embedding_{matrix}"
    return f"base_model.model.{name}.lora_{matrix}.weight"


def _config(places: Sequence[_Place], components: Sequence[ParsedAdapter]) -> bytes:
    rank = Counter(place.rank for place in places).most_common(1)[0][0]
    pattern = _rank_pattern(places, rank)
    trained_on = {each.manifest.config.base_model_name_or_path for each in components}
    fields: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": trained_on.pop() if len(trained_on) == 1 else "",
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        # By full name, as components may have been trained on different layers.
        "target_modules": [place.name for place in places],
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _rank_pattern(places: Sequence[_Place], rank: int) -> Mapping[str, int]:
    """Ranks other than `rank`: by module where all layers that have it agree, else one by one."""
    by_module: dict[str, list[_Place]] = {}
    for place in places:
        by_module.setdefault(re.sub(r"^model\.(layers\.[0-9]+\.)?", "", place.name), []).append(
            place
        )
    pattern: dict[str, int] = {}
    for module, its_places in by_module.items():
        ranks = {place.rank for place in its_places}
        if len(ranks) > 1:
            pattern |= {re.escape(each.name): each.rank for each in its_places if each.rank != rank}
        elif ranks != {rank}:
            pattern[re.escape(module)] = ranks.pop()
    return pattern
