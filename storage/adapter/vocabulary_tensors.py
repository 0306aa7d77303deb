"""An adapter's embedding, head and trained tokens, as its file has them: is that what its
configuration says?"""

from __future__ import annotations

from collections.abc import Container, Mapping

from storage.adapter.config import AdapterConfig
from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD, SavedModule, TrainedTokens
from storage.adapter.weights import TensorRef
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt


def split_copies(
    config: AdapterConfig,
    copies: Mapping[str, TensorRef],
    wrapped: Container[str],
    with_lora: Container[str],
) -> tuple[tuple[SavedModule, ...], dict[str, TensorRef]]:
    """Those of modules_to_save, and by module those that were saved along.

    copies: whole embedding and head of the file, by module. wrapped: those that lie below a LoRA.
    with_lora: of these modules, those that have one.
    Raises: BadWeightsError.
    """
    saved: list[SavedModule] = []
    for module in config.modules_to_save:
        if module not in copies:
            raise BadWeightsError(
                f"adapter_config.json has {module} in modules_to_save, but the file has no"
                f" {module}.weight: it is incomplete; save the adapter again",
                metadata={"module": module, "field": "modules_to_save"},
            )
        if module in with_lora:
            raise BadWeightsError(
                f"{module} is in modules_to_save and has LoRA matrices: PEFT takes one of both;"
                " config and weights are not of one adapter",
                metadata={"module": module, "field": "modules_to_save"},
            )
        saved.append(SavedModule(module, copies[module]))
    for module, ref in copies.items():
        _check_copy(ref, module in wrapped, module in with_lora, module)
    taken = {each.module for each in saved}
    return tuple(saved), {module: ref for module, ref in copies.items() if module not in taken}


def _check_copy(ref: TensorRef, is_wrapped: bool, has_lora: bool, module: str) -> None:
    # An unwrapped head beside a LoRA is how early versions of PEFT saved it.
    if is_wrapped != has_lora and not (has_lora and module == LM_HEAD):
        says = "with LoRA, but there are no matrices" if is_wrapped else "without LoRA, but it has"
        raise BadWeightsError(
            f"tensor {excerpt(ref.name)} is of a {module} {says}: PEFT would not read it; save the"
            " adapter again",
            metadata={"tensor": ref.name[:200]},
        )
    if len(ref.shape) != 2 or 0 in ref.shape:
        raise BadWeightsError(
            f"tensor {excerpt(ref.name)} has shape {list(ref.shape)}; it must be [vocab, hidden]",
            metadata={"tensor": ref.name[:200]},
        )


def trained_tokens(
    config: AdapterConfig, rows: Mapping[str, TensorRef], with_lora: Container[str]
) -> tuple[TrainedTokens, ...]:
    """rows: of the file, by module. with_lora: modules that have a LoRA.

    Raises: BadWeightsError, UnsupportedFeatureError.
    """
    asked = config.trained_tokens
    found: list[TrainedTokens] = []
    for module, ref in sorted(rows.items()):
        if module not in asked:
            raise BadWeightsError(
                f"the file has trained tokens of {module}, but adapter_config.json names none in"
                " trainable_token_indices: config and weights are not of one adapter",
                metadata={"module": module, "field": "trainable_token_indices"},
            )
        if len(ref.shape) != 2 or ref.shape[0] != len(asked[module]) or 0 in ref.shape:
            raise BadWeightsError(
                f"tensor {excerpt(ref.name)} has shape {list(ref.shape)}; trainable_token_indices"
                f" names {len(asked[module])} tokens of {module}, so it must have as many rows",
                metadata={"tensor": ref.name[:200], "field": "trainable_token_indices"},
            )
        found.append(TrainedTokens(module, asked[module], ref))
    for module in asked:
        if module in with_lora:
            raise UnsupportedFeatureError(
                f"{module} has LoRA matrices and is in trainable_token_indices: PEFT does not"
                " define both together",
                metadata={"module": module, "field": "trainable_token_indices"},
            )
        # PEFT saves equal tokens of a tied head once, as the embedding's.
        is_tied = module == LM_HEAD and asked[module] == asked.get(EMBED_TOKENS)
        if module not in rows and not is_tied:
            raise BadWeightsError(
                f"adapter_config.json names tokens of {module} in trainable_token_indices, but the"
                " file has no rows for them: it is incomplete; save the adapter again",
                metadata={"module": module, "field": "trainable_token_indices"},
            )
    return tuple(found)
