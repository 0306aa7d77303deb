"""What a merge is made of, as the URI that stands for its source:

    merge:ties?density=0.5&sign=total&of=NAME@VERSION*WEIGHT*DIGEST*SOURCE&of=...

Components are pinned by digest, and stand in the order of their digests; weights are written with
as few digits as tell them apart. So one merge has one URI, but for the names and sources in it, and
what it gives depends on no name, no source and no order.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from storage.errors import MergeRefusedError, excerpt

SCHEME = "merge:"
STRATEGIES = ("cat", "linear", "ties", "magnitude_prune", "dare_linear", "dare_ties")
SIGNS = ("total", "frequency")
MAX_COMPONENTS = 32
MAX_RECIPE_CHARS = 8192
MAX_WEIGHT = 1000.0
MIN_WEIGHT = 1e-6
MAX_SEED = 2**64 - 1

_PRUNING = frozenset({"ties", "magnitude_prune", "dare_linear", "dare_ties"})
_ELECTING = frozenset({"ties", "dare_ties"})
_DRAWING = frozenset({"dare_linear", "dare_ties"})
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}@[1-9][0-9]{0,9}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9.]{1,24}(?:e-?[0-9]{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Component:
    """name: NAME@VERSION as registered. source: a URI, read by whoever builds the merge."""

    name: str
    weight: float
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """components: in order of digest. density: share of values that pruning leaves, or None where
    nothing is pruned. majority_sign: "total" or "frequency" where signs are elected, else "". seed:
    of what DARE draws, else None. Made by `make_recipe` and `parse_recipe` only."""

    strategy: str
    components: tuple[Component, ...]
    density: float | None
    majority_sign: str
    seed: int | None

    @property
    def uri(self) -> str:
        fields: list[str] = []
        if self.density is not None:
            fields.append(f"density={self.density!r}")
        if self.majority_sign:
            fields.append(f"sign={self.majority_sign}")
        if self.seed is not None:
            fields.append(f"seed={self.seed}")
        fields += [
            f"of={each.name}*{each.weight!r}*{each.digest}*{quote(each.source, safe='/:@')}"
            for each in self.components
        ]
        return f"{SCHEME}{self.strategy}?{'&'.join(fields)}"


def make_recipe(
    strategy: str,
    components: list[Component],
    *,
    density: float | None = None,
    majority_sign: str = "",
    seed: int | None = None,
) -> Recipe:
    """Left out, strategy is "cat", majority_sign "total" and seed 0, where they mean something.

    Raises: MergeRefusedError naming the field.
    """
    strategy = strategy or "cat"
    if strategy not in STRATEGIES:
        raise refused(
            "strategy", f"must be one of {', '.join(STRATEGIES)}, not {excerpt(strategy, 80)}"
        )
    _check_components(strategy, components)
    recipe = Recipe(
        strategy,
        tuple(
            replace(each, weight=float(each.weight))
            for each in sorted(components, key=lambda each: each.digest)
        ),
        _density(strategy, density),
        _majority_sign(strategy, majority_sign),
        _seed(strategy, seed),
    )
    if (num_chars := len(recipe.uri)) > MAX_RECIPE_CHARS:
        raise refused(
            "components",
            f"take {num_chars} characters with their sources, and {MAX_RECIPE_CHARS} is the limit: "
            "merge fewer, or register them from shorter sources",
        )
    return recipe


def is_merge(uri: str) -> bool:
    return uri[: len(SCHEME)].lower() == SCHEME


def parse_recipe(uri: str) -> Recipe:
    """Raises: MergeRefusedError for what is no URI of a merge."""
    if len(uri) > MAX_RECIPE_CHARS:
        raise refused("source", f"has {len(uri)} characters; {MAX_RECIPE_CHARS} is the limit")
    strategy, _, query = uri[len(SCHEME) :].partition("?")
    components: list[Component] = []
    fields: dict[str, str] = {}
    for part in query.split("&") if is_merge(uri) else ():
        key, _, value = part.partition("=")
        if key == "of":
            components.append(_component(value))
        elif key in ("density", "sign", "seed") and key not in fields and value:
            fields[key] = value
        else:
            raise _malformed(part)
    density, seed = fields.get("density"), fields.get("seed")
    if seed is not None and not _INTEGER.fullmatch(seed):
        raise _malformed(f"seed={seed}")
    return make_recipe(
        strategy,
        components,
        density=None if density is None else _number(density),
        majority_sign=fields.get("sign", ""),
        seed=None if seed is None else int(seed),
    )


def refused(field: str, problem: str, *, component: str = "") -> MergeRefusedError:
    metadata = {"field": field} | ({"component": component[:200]} if component else {})
    return MergeRefusedError(f"{field} {problem}", metadata=metadata)


def _component(text: str) -> Component:
    parts = text.split("*")
    if len(parts) != 4:
        raise _malformed(text)
    name, weight, digest, source = parts
    return Component(name, _number(weight), digest, unquote(source, errors="replace"))


def _number(text: str) -> float:
    try:
        if _NUMBER.fullmatch(text):
            return float(text)
    except ValueError:
        pass
    raise _malformed(text)


def _malformed(part: str) -> MergeRefusedError:
    return refused(
        "source",
        f"is no recipe of a merge at {excerpt(part, 80)}: `chorale adapters merge` and "
        "MergeAdapters write one",
    )


def _check_components(strategy: str, components: list[Component]) -> None:
    if not 1 <= len(components) <= MAX_COMPONENTS:
        raise refused("components", f"must be 1 to {MAX_COMPONENTS}, not {len(components)}")
    if len(components) == 1 and strategy in _PRUNING:
        raise refused(
            "components", f"of strategy {strategy} must be two or more; cat and linear take one"
        )
    seen: dict[str, str] = {}
    for index, each in enumerate(components):
        field = f"components[{index}]"
        if not _NAME.fullmatch(each.name):
            raise refused(f"{field}.adapter", f"must be NAME@VERSION, not {excerpt(each.name, 80)}")
        if not _DIGEST.fullmatch(each.digest):
            raise refused(f"{field}.digest", f"is none: {excerpt(each.digest, 80)}")
        size = abs(each.weight)
        if not (math.isfinite(each.weight) and MIN_WEIGHT <= size <= MAX_WEIGHT):
            raise refused(
                f"{field}.weight",
                f"of {each.name} must be a number of magnitude {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, "
                f"not {each.weight!r}; leave out what is to count for nothing",
                component=each.name,
            )
        if not each.source.isprintable() or not each.source:
            raise refused(f"{field}.source", f"of {each.name} is none: {excerpt(each.source, 80)}")
        if is_merge(each.source):
            raise refused(
                f"{field}.source",
                f"of {each.name} is another merge's: name what that one is made of",
                component=each.name,
            )
        if each.digest in seen:
            raise refused(
                field,
                f"{each.name} has the content of {seen[each.digest]}: name it once, with the sum "
                "of the weights",
                component=each.name,
            )
        seen[each.digest] = each.name


def _density(strategy: str, density: float | None) -> float | None:
    if strategy not in _PRUNING:
        if density is not None:
            raise refused("density", f"means nothing to strategy {strategy}: leave it out")
        return None
    if density is None or not 0.0 < density <= 1.0:
        given = "none" if density is None else repr(density)
        raise refused(
            "density",
            f"of strategy {strategy} must be above 0 and at most 1, the share of values to keep, "
            f"not {given}",
        )
    return float(density)


def _majority_sign(strategy: str, sign: str) -> str:
    if strategy not in _ELECTING:
        if sign:
            raise refused("majority_sign", f"means nothing to strategy {strategy}: leave it out")
        return ""
    if sign and sign not in SIGNS:
        raise refused("majority_sign", f"must be {' or '.join(SIGNS)}, not {excerpt(sign, 80)}")
    return sign or "total"


def _seed(strategy: str, seed: int | None) -> int | None:
    if strategy not in _DRAWING:
        if seed is not None:
            raise refused("seed", f"means nothing to strategy {strategy}: leave it out")
        return None
    if not 0 <= (seed or 0) <= MAX_SEED:
        raise refused("seed", f"must be 0 to {MAX_SEED}, not {excerpt(seed, 80)}")
    return seed or 0
