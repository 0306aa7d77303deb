"""LoRA on mixtures of experts, in the two forms in which peft writes it.

With transformers 5 the experts of a layer are two parameters, and `target_parameters` names what is
trained: A is [experts * rank, in], its rows expert by expert, and B is [out, rank * experts], its
columns rank by rank. Wrappers of several parameters are nested, in the order in which the module
declares them, so a file has `mlp.experts.base_layer` for gate_up_proj below `mlp.experts` for
down_proj, and `mlp.experts` alone for the only one. The router is `mlp.gate`, parameter `weight`.

With transformers 4 each expert's matrices, and the router, are linear modules like others:
`mlp.experts.3.gate_proj`, of Mixtral `block_sparse_moe.experts.3.w1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping

from storage.adapter.config import AdapterConfig
from storage.adapter.selection import ModuleSelector
from storage.adapter.weights import TensorRef
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt

GATE_UP = "mlp.experts.gate_up_proj"
DOWN = "mlp.experts.down_proj"
ROUTER = "mlp.gate"
OLD_ROUTER = "block_sparse_moe.gate"
"""Mixtral's, with transformers 4."""

_OUTER, _INNER = "mlp.experts", "mlp.experts.base_layer"
_NUMBERED = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")

Place = tuple[int | None, str]
Parts = dict[str, TensorRef]


def split_expert(module: str) -> tuple[str, int]:
    """ "mlp.experts.3.gate_proj" → ("mlp.experts.*.gate_proj", 3); others as they are, and -1."""
    found = _NUMBERED.fullmatch(module)
    return (f"{found[1]}.*.{found[3]}", int(found[2])) if found else (module, -1)


def is_whole(module: str) -> bool:
    """Whether it holds all experts of a layer."""
    return module in (GATE_UP, DOWN)


def is_of_mixture(module: str) -> bool:
    """A router, or of experts."""
    return is_whole(module) or module in (ROUTER, OLD_ROUTER) or split_expert(module)[1] >= 0


def is_old_form(config: AdapterConfig, modules: Iterable[str]) -> bool:
    """Whether a file that has these modules is of transformers 4."""
    return any(
        module == OLD_ROUTER
        or split_expert(module)[1] >= 0
        or (module == ROUTER and not config.target_parameters)
        for module in modules
    )


def parameter_name(config: AdapterConfig, name: str, module: str) -> str:
    """What patterns are matched with: of a module's full name, or of its parameter's."""
    return f"{name}.weight" if module == ROUTER and config.target_parameters else name


def name_parameters(
    config: AdapterConfig,
    selector: ModuleSelector,
    layers: str,
    pairs: MutableMapping[Place, Parts],
) -> None:
    """Renames wrappers of experts' parameters, in place, to GATE_UP and DOWN.

    layers: what comes before a layer's number in full names, "model.layers.".
    Raises: BadWeightsError where the configuration does not tell which parameter is meant, or has
    another form than the file; UnsupportedFeatureError for DoRA and biases on mixtures.
    """
    if whole := next((at for at in pairs if is_whole(at[1])), None):
        raise BadWeightsError(
            f"the weights have {excerpt(f'{layers}{whole[0]}.{whole[1]}')}, which peft names by its"
            f" module, {_OUTER} or {_INNER}: save the adapter with peft",
            metadata={"module": f"{layers}{whole[0]}.{whole[1]}"},
        )
    for layer, module in [at for at in pairs if at[1] == _OUTER]:
        inner = pairs.pop((layer, _INNER), None)
        if inner is None:
            found = _only_parameter(selector, f"{layers}{layer}.")
        else:
            found = DOWN
            pairs[layer, GATE_UP] = inner
        pairs[layer, found] = pairs.pop((layer, module))
    if alone := next((at for at in pairs if at[1] == _INNER), None):
        raise BadWeightsError(
            f"{layers}{alone[0]}.{_INNER} has a LoRA, but {_OUTER} around it has none: the file is"
            " incomplete; save the adapter again",
            metadata={"module": f"{layers}{alone[0]}.{_INNER}"},
        )
    if config.target_parameters and is_old_form(config, (module for _, module in pairs)):
        name = next(module for _, module in pairs if is_old_form(config, [module]))
        raise BadWeightsError(
            f"the weights have {excerpt(name)}, as transformers 4 names it, beside"
            " target_parameters, which are of transformers 5: config and weights are not of one"
            " adapter",
            metadata={"module": name[:200]},
        )
    _refuse_variants(config, pairs)


def _only_parameter(selector: ModuleSelector, layer: str) -> str:
    selected = [each for each in (GATE_UP, DOWN) if selector.selects_parameter(f"{layer}{each}")]
    if not selected:
        raise BadWeightsError(
            f"the weights have {layer}{_OUTER}, but target_parameters selects neither of"
            f" {layer}{GATE_UP} and {layer}{DOWN}: config and weights are not of one adapter",
            metadata={"module": f"{layer}{_OUTER}", "field": "target_parameters"},
        )
    return selected[-1]  # of both it is the outer one, and the inner one is missing


def _refuse_variants(config: AdapterConfig, pairs: Mapping[Place, Parts]) -> None:
    module = next((module for _, module in pairs if is_of_mixture(module)), None)
    for field, is_set in (("use_dora", config.use_dora), ("lora_bias", config.lora_bias)):
        if is_set and module is not None:
            raise UnsupportedFeatureError(
                f"adapter_config.json: {field} cannot be served together with LoRA on"
                f" {excerpt(module)}, a part of a mixture of experts: train the adapter without"
                " one of them",
                metadata={"field": field, "module": module[:200]},
            )
