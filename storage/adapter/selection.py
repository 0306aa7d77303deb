"""Which modules a config selects, and with what rank and scaling: PEFT's matching, restated.

Names are full module names in the model that was trained, e.g. "model.layers.3.mlp.up_proj".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from storage.adapter.config import AdapterConfig
from storage.adapter.pattern import Budget, Pattern, compile_pattern
from storage.adapter.pattern_syntax import PatternSyntaxError
from storage.errors import BadConfigError, excerpt

ALL_LINEAR = "all-linear"
# PEFT asks for a parent before the list of layers: "layers.0.x" has no index by this rule.
_ANY_LAYER_LIST = r".*?\.[^.]*\.(\d+)\."
_LIST_NAME = re.compile(r"[A-Za-z0-9_.]+")
# More would cost a regex match per pattern and module; EVA's plain names are not counted.
_MAX_COSTLY_PATTERNS = 64


class ModuleSelector:
    """One config's view on module names. It holds a step budget: make one per adapter check."""

    def __init__(self, config: AdapterConfig) -> None:
        """Raises: BadConfigError where a pattern of the config cannot be used."""
        self._config = config
        self._budget = Budget()
        targets = config.target_modules
        self._all_linear = isinstance(targets, str) and targets.lower() == ALL_LINEAR
        self._target = _Names("target_modules", () if self._all_linear else targets, self._budget)
        self._exclude = _Names("exclude_modules", config.exclude_modules, self._budget)
        self._layer_lists = [_layer_list(name) for name in config.layers_pattern]
        self._ranks = _compile_keys("rank_pattern", config.rank_pattern)
        self._alphas = _compile_keys("alpha_pattern", config.alpha_pattern)

    def selects(self, name: str, *, linear: bool = True, output_head: bool = False) -> bool:
        """Whether PEFT would put a LoRA on `name`.

        linear: the module is a linear layer; output_head: it is the one onto the vocabulary.
        Both matter to "all-linear" only. Raises: BadConfigError when matching costs too much.
        """
        if self._exclude.match(name) or name.rpartition(".")[2] in self._config.modules_to_save:
            return False
        if self._all_linear:
            return linear and not output_head
        if self._target.is_listed(name):
            return True  # PEFT does not look at layers_to_transform then
        return self._target.match(name) and self._in_layers(name)

    def selects_parameter(self, name: str) -> bool:
        """Whether PEFT would put a LoRA on this parameter of a module that is not linear. Neither
        exclude_modules nor layers_to_transform count."""
        listed = self._config.target_parameters
        return name in listed or name.endswith(tuple(f".{each}" for each in listed))

    def rank(self, name: str) -> int:
        found = _first(self._ranks, "rank_pattern", name, self._budget)
        return self._config.r if found is None else self._config.rank_pattern[found]

    def scaling(self, name: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) with use_rslora."""
        found = _first(self._alphas, "alpha_pattern", name, self._budget)
        alpha = self._config.lora_alpha if found is None else self._config.alpha_pattern[found]
        rank = self.rank(name)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)

    def _in_layers(self, name: str) -> bool:
        wanted = self._config.layers_to_transform
        if wanted is None or wanted == ():
            return True
        for pattern in self._layer_lists or [re.compile(_ANY_LAYER_LIST)]:
            found = pattern.match(name)
            if found:
                index = int(found[1])
                return index == wanted if isinstance(wanted, int) else index in wanted
        return False


class _Names:
    """`target_modules` or `exclude_modules`: a regex for the whole name, or suffixes."""

    def __init__(self, field: str, value: str | tuple[str, ...], budget: Budget) -> None:
        self._field = field
        self._budget = budget
        self._pattern: Pattern | None = None
        self._listed: frozenset[str] = frozenset()
        if isinstance(value, str):
            self._pattern = _compile(field, value) if value else None
        else:
            self._listed = frozenset(value)
        self._suffixes = tuple(f".{name}" for name in self._listed)

    def is_listed(self, name: str) -> bool:
        return name in self._listed

    def match(self, name: str) -> bool:
        if self._pattern is not None:
            return _fullmatch(self._field, self._pattern, name, self._budget)
        return name in self._listed or name.endswith(self._suffixes)


def _layer_list(name: str) -> re.Pattern[str]:
    if not _LIST_NAME.fullmatch(name):
        raise BadConfigError(
            f"layers_pattern must name the model's list of layers, e.g. 'layers', "
            f"not {excerpt(name)}"
        )
    return re.compile(rf"(?:^|.*?\.){name}\.(\d+)\.")


def _compile_keys(field: str, keys: Mapping[str, object]) -> list[tuple[str, Pattern]]:
    compiled = [(key, _compile(field, key, dotted_suffix=True)) for key in keys]
    if sum(pattern.is_costly for _, pattern in compiled) > _MAX_COSTLY_PATTERNS:
        raise BadConfigError(
            f"{field} has more than {_MAX_COSTLY_PATTERNS} keys that are regular expressions; "
            "write out the module names"
        )
    return compiled


def _first(
    patterns: list[tuple[str, Pattern]], field: str, name: str, budget: Budget
) -> str | None:
    for key, pattern in patterns:
        if _fullmatch(field, pattern, name, budget):
            return key
    return None


def _compile(field: str, text: str, *, dotted_suffix: bool = False) -> Pattern:
    try:
        return compile_pattern(text, dotted_suffix=dotted_suffix)
    except PatternSyntaxError as problem:
        raise BadConfigError(
            f"{field}: regular expression {excerpt(text)} cannot be used: {problem}"
        ) from None


def _fullmatch(field: str, pattern: Pattern, name: str, budget: Budget) -> bool:
    try:
        return pattern.fullmatch(name, budget)
    except PatternSyntaxError as problem:
        raise BadConfigError(
            f"{field}: a regular expression {problem}; list module names instead"
        ) from None
