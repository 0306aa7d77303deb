"""Adapters to merge whose values no library draws, and a source that has them."""

from __future__ import annotations

import numpy as np

from storage.adapter.manifest import ParsedAdapter, digest_of, parse_adapter
from storage.errors import (
    SourceNotFoundError,
)
from storage.files import AdapterFiles
from storage.limits import DEFAULT_LIMITS
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe
from storage.sources import ANYBODY, Access
from tests.storage.samples import config, lora_tensors, safetensors


def sample(step: int) -> AdapterFiles:
    """An adapter on q_proj whose values no library draws."""
    tensors = lora_tensors()
    for number, (name, (dtype, shape, data)) in enumerate(tensors.items()):
        counted = np.arange(len(data) // 4, dtype=np.int64) * step + number * 17
        values = ((counted % 997 - 498) / 997).astype("<f4")
        tensors[name] = dtype, shape, values.tobytes()
    return AdapterFiles(config(), safetensors(tensors), "test://sample")


PARTS = [sample(step) for step in (31, 577, 811)]
DIGESTS = [digest_of(part.config, part.weights) for part in PARTS]


class MemorySource:
    def __init__(self) -> None:
        self.contents = {f"mem://h{n}/x": part for n, part in enumerate(PARTS)}
        self.fetched: list[str] = []
        self.tokens: list[str] = []

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        self.fetched.append(uri)
        self.tokens.append(access.token)
        if uri not in self.contents:
            raise SourceNotFoundError(f"no {uri}")
        return self.contents[uri]


def components(weights: tuple[float, ...] = (1.0, 0.5, -2.0)) -> list[Component]:
    return [
        Component(f"part{n}@1", weight, DIGESTS[n], f"mem://h{n}/x")
        for n, weight in enumerate(weights)
    ]


def ordered(recipe: Recipe, parts: list[AdapterFiles] = PARTS) -> list[ParsedAdapter]:
    parsed = [parse_adapter(part.config, part.weights) for part in parts]
    by_digest = {each.manifest.digest: each for each in parsed}
    return [by_digest[component.digest] for component in recipe.components]


def made(recipe: Recipe) -> AdapterFiles:
    return merged_files(recipe, ordered(recipe), DEFAULT_LIMITS)


def digest(recipe: Recipe) -> str:
    merged = made(recipe)
    return digest_of(merged.config, merged.weights)
