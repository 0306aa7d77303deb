"""Does an adapter fit a base model, wholly and exactly?"""

from __future__ import annotations

import re
from collections.abc import Iterable

from storage.adapter.experts import (
    OLD_ROUTER,
    ROUTER,
    is_of_mixture,
    parameter_name,
    split_expert,
)
from storage.adapter.manifest import AdapterManifest, LoraModule, frozen_base_name, full_name
from storage.adapter.selection import ModuleSelector
from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD
from storage.base_model import BaseModelSpec
from storage.errors import AdapterMismatchError, excerpt

_SHOWN = 5


def check_base(
    manifest: AdapterManifest, spec: BaseModelSpec, *, explicit_base: bool = False
) -> None:
    """Refuse an adapter that `spec` cannot apply exactly as it was trained.

    explicit_base: somebody who may has said that the base is the right one; its name is not
    compared then, everything else is. CPU work up to seconds for hostile patterns: run it off
    the event loop.

    Raises: AdapterMismatchError with reason BASE_MODEL_MISMATCH, UNKNOWN_MODULE, SHAPE_MISMATCH,
    MISSING_MODULES or UNSELECTED_MODULES; BadConfigError when a pattern costs too much to match.
    """
    if not explicit_base:
        _check_name(manifest.config.base_model_name_or_path, spec)
    for module in manifest.modules:
        name = manifest.full_name(module)
        if is_of_mixture(module.module):
            num_in, num_out = _known_mixture(name, module, spec)
        else:
            num_in, num_out = _known_module(name, module.layer, module.module, spec)
        if module.a.shape[1] != num_in or module.b.shape[0] != num_out:
            raise AdapterMismatchError(
                f"{name} maps {module.a.shape[1]} to {module.b.shape[0]} in the adapter, "
                f"{num_in} to {num_out} in {spec.name}",
                reason="SHAPE_MISMATCH",
                metadata={
                    "module": name,
                    "adapter_shape": f"{module.a.shape[1]}x{module.b.shape[0]}",
                    "base_shape": f"{num_in}x{num_out}",
                },
            )
    for bias in manifest.biases:
        name = full_name(manifest.layers_root, bias.layer, bias.module)
        _, num_out = _known_module(name, bias.layer, bias.module, spec)
        if bias.ref.shape != (num_out,):
            raise AdapterMismatchError(
                f"the bias of {name} has {bias.ref.shape[0]} elements in the adapter, {num_out} in "
                f"{spec.name}",
                reason="SHAPE_MISMATCH",
                metadata={"module": name},
            )
    _check_vocabulary(manifest, spec)
    _check_selection(manifest, spec)


def _check_name(trained_on: str, spec: BaseModelSpec) -> None:
    if not trained_on or trained_on.casefold() == spec.name.casefold():
        return
    if _last_component(trained_on) == _last_component(spec.name):
        return
    raise AdapterMismatchError(
        f"the adapter was trained on {excerpt(trained_on)}, this base model is {spec.name!r}; "
        "if they are the same model, name the base model explicitly when registering",
        reason="BASE_MODEL_MISMATCH",
        metadata={"trained_on": trained_on[:200], "base_model": spec.name},
    )


def _last_component(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()


def _known_module(
    name: str, layer: int | None, module: str, spec: BaseModelSpec
) -> tuple[int, int]:
    """In and out features of the base's module."""
    known = spec.layer_modules if layer is not None else dict(spec.outer_modules)
    if layer is None and spec.embedding is not None:
        known = {**known, EMBED_TOKENS: spec.embedding}
    if layer is not None and layer >= spec.num_layers:
        raise AdapterMismatchError(
            f"the adapter has weights for {excerpt(name)}, but {spec.name} has {spec.num_layers} "
            "layers",
            reason="UNKNOWN_MODULE",
            metadata={"module": name[:200], "base_model": spec.name},
        )
    if layer is not None and module in known and layer not in spec.layers_of(module):
        known = {each: known[each] for each in spec.modules_of(layer)}
    if module not in known:
        raise AdapterMismatchError(
            f"the adapter has weights for {excerpt(name)}, which {spec.name} does not have there; "
            f"it has {', '.join(sorted(known))}",
            reason="UNKNOWN_MODULE",
            metadata={"module": name[:200], "base_model": spec.name},
        )
    return known[module]


def _known_mixture(name: str, module: LoraModule, spec: BaseModelSpec) -> tuple[int, int]:
    """In and out features of one expert's part, or of the router."""
    key, expert = split_expert(module.module)
    known = spec.mixture_modules.get(key)
    if known is None or module.layer not in known.layers:
        has = sorted(n for n, each in spec.mixture_modules.items() if module.layer in each.layers)
        raise AdapterMismatchError(
            f"the adapter has weights for {excerpt(name)}, which {spec.name} does not have there; "
            + (f"its mixtures of experts have {', '.join(has)}" if has else "it has no mixture"),
            reason="UNKNOWN_MODULE",
            metadata={"module": name[:200], "base_model": spec.name},
        )
    if expert >= known.num_experts > 0 or module.num_experts not in (0, known.num_experts):
        count = module.num_experts or expert + 1
        raise AdapterMismatchError(
            f"{name} is of {'at least ' if expert >= 0 else ''}{count} experts in the adapter, "
            f"{spec.name} has {known.num_experts}",
            reason="SHAPE_MISMATCH",
            metadata={"module": name[:200], "base_model": spec.name},
        )
    return known.in_features, known.out_features


def _check_vocabulary(manifest: AdapterManifest, spec: BaseModelSpec) -> None:
    """Embedding, head and tokens must be of the base's vocabulary and width."""
    if spec.embedding is None:
        return
    vocab, hidden = spec.embedding
    wholes = [(each.module, each.ref) for each in manifest.saved_modules]
    wholes += [
        (frozen_base_name(ref).removesuffix(".weight"), ref) for ref in manifest.frozen_copies
    ]
    for module, ref in wholes:
        if ref.shape != (vocab, hidden):
            raise AdapterMismatchError(
                f"the adapter carries {module}.weight of shape {list(ref.shape)}, the base has "
                f"{[vocab, hidden]}: it was trained with another vocabulary; resize the base "
                "model's embeddings alike, save it, and serve that",
                reason="SHAPE_MISMATCH",
                metadata={"module": f"{module}.weight"},
            )
    for tokens in manifest.trained_tokens:
        if tokens.ref.shape[1] != hidden:
            raise AdapterMismatchError(
                f"trained tokens of {tokens.module} have {tokens.ref.shape[1]} features, "
                f"{spec.name} has {hidden}",
                reason="SHAPE_MISMATCH",
                metadata={"module": tokens.module},
            )
    if (last := max(manifest.config.invocation_tokens, default=0)) >= vocab:
        raise AdapterMismatchError(
            f"alora_invocation_tokens has token {last}, but {spec.name} has {vocab}: the adapter "
            "was trained with another vocabulary",
            reason="SHAPE_MISMATCH",
            metadata={"field": "alora_invocation_tokens", "token": str(last)},
        )
    for module, indices in manifest.config.trained_tokens.items():
        if (highest := max(indices)) >= vocab:
            raise AdapterMismatchError(
                f"trainable_token_indices names token {highest} of {module}, but {spec.name} has "
                f"{vocab}: it was trained with another vocabulary; resize the base model's "
                "embeddings alike, save it, and serve that",
                reason="SHAPE_MISMATCH",
                metadata={"module": module, "token": str(highest)},
            )


def _check_selection(manifest: AdapterManifest, spec: BaseModelSpec) -> None:
    selector = ModuleSelector(manifest.config)
    root = manifest.layers_root
    selected = {
        name
        for module in spec.layer_modules
        for layer in spec.layers_of(module)
        if selector.selects(name := full_name(root, layer, module))
    }
    selected |= {
        name
        for module in spec.outer_modules
        if selector.selects(name := full_name(root, None, module), output_head=module == LM_HEAD)
    }
    embedding = full_name(root, None, EMBED_TOKENS)
    if spec.embedding is not None and selector.selects(embedding, linear=False):
        selected.add(embedding)
    selected |= _selected_of_mixtures(manifest, spec, selector)
    present = {manifest.full_name(module) for module in manifest.modules}
    if missing := selected - present:
        raise AdapterMismatchError(
            f"adapter_config.json selects {len(missing)} modules that the weights do not have "
            f"({_some(missing)}): the adapter is incomplete; save it again",
            reason="MISSING_MODULES",
            metadata={"count": str(len(missing)), "module": min(missing)},
        )
    if extra := present - selected:
        raise AdapterMismatchError(
            f"the weights have {len(extra)} modules that adapter_config.json does not select "
            f"({_some(extra)}): config and weights are not of one adapter",
            reason="UNSELECTED_MODULES",
            metadata={"count": str(len(extra)), "module": min(extra)},
        )


def _selected_of_mixtures(
    manifest: AdapterManifest, spec: BaseModelSpec, selector: ModuleSelector
) -> set[str]:
    """As the version of transformers saw them that wrote the file."""
    config, root = manifest.config, manifest.layers_root
    is_old = manifest.is_old_form
    if not is_old and not config.target_parameters:
        return set()
    router = OLD_ROUTER if is_old and OLD_ROUTER in spec.mixture_modules else ROUTER
    selected: set[str] = set()
    for module, known in spec.mixture_modules.items():
        if module != router if known.num_experts == 0 else ("*" in module) != is_old:
            continue
        for layer in known.layers:
            for expert in range(known.num_experts if "*" in module else 1):
                name = full_name(root, layer, module.replace("*", str(expert)))
                if is_old:
                    is_selected = selector.selects(name)
                else:
                    is_selected = selector.selects_parameter(parameter_name(config, name, module))
                if is_selected:
                    selected.add(name)
    return selected


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
