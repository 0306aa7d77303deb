"""What of an adapter's embedding, head and trained tokens takes effect, as PEFT loads them.

Its file is loaded into a model whose modules are wrapped as the configuration says. A module of
modules_to_save has a matrix of its own. What the file has of others goes into the base model's,
which a tied head shares with the embedding. Where the outcome would depend on the order of loading,
the adapter is refused. A matrix that is the base's costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from dataplane.errors import AdapterRefusedError
from dataplane.lora.tensors import stored_rows
from dataplane.models.weights import ModelWeights
from storage import pace
from storage.adapter.manifest import LoraModule, ParsedAdapter, frozen_base_name
from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD, TrainedTokens
from storage.adapter.weights import TensorRef

_ROWS_AT_ONCE = 1024  # of a matrix, to bound memory
_BYTES_AT_ONCE = 1 << 20


class VocabularyParts(NamedTuple):
    """None: as the base has it. embedding, head: whole, maybe the same tensor; likewise tokens."""

    embedding: TensorRef | None = None
    head: TensorRef | None = None
    embedding_tokens: TrainedTokens | None = None
    head_tokens: TrainedTokens | None = None
    lora: LoraModule | None = None  # on the embedding

    @property
    def are_base(self) -> bool:
        return not any(self)


def vocabulary_parts(base: ModelWeights, adapter: ParsedAdapter) -> VocabularyParts:
    """Of a validated adapter (storage.adapter.match.check_base has passed).

    Raises: AdapterRefusedError where PEFT does not define what they do together, or the file has
    not all of it.
    """
    manifest = adapter.manifest
    outer = {each.module: each for each in manifest.modules if each.layer is None}
    if base.is_tie_in_doubt and (manifest.trained_tokens or manifest.config.ensure_weight_tying):
        raise _unclear(
            adapter,
            f"by its config.json the base model's {LM_HEAD} is tied to its {EMBED_TOKENS}, by its"
            " checkpoint it is not: PEFT does not define trained tokens and ensure_weight_tying"
            " then; train it with tie_word_embeddings=False, and serve a base model saved so",
        )
    embedding_tokens, head_tokens = _tokens(base, adapter, LM_HEAD in outer)
    if head_tokens is not None and base.head_bias is not None:
        raise AdapterRefusedError(
            "UNSUPPORTED_FEATURE",
            f"trained tokens of {LM_HEAD}, which has a bias in this base model: PEFT leaves that"
            " out while the adapter is active; train LoRA on it instead",
            {"module": LM_HEAD, "digest": manifest.digest},
        )
    wholes = _Wholes(base, adapter, outer.get(LM_HEAD))
    return VocabularyParts(
        wholes.effective(EMBED_TOKENS),
        wholes.effective(LM_HEAD),
        embedding_tokens,
        head_tokens,
        _lora(base, adapter, outer.get(EMBED_TOKENS)),
    )


class _Wholes:
    """Whole matrices of the file."""

    def __init__(
        self, base: ModelWeights, adapter: ParsedAdapter, head_lora: LoraModule | None
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._head_lora = head_lora
        manifest = adapter.manifest
        self._saved = {each.module: each.ref for each in manifest.saved_modules}
        self._copies = {
            frozen_base_name(ref).removesuffix(".weight"): ref for ref in manifest.frozen_copies
        }
        if base.tied and manifest.config.ensure_weight_tying and self._saved:
            self._tie()
        self._changed = {
            module: ref for module, ref in self._copies.items() if not self._is_base(module, ref)
        }
        for module, ref in self._changed.items():
            self._check_copy(module, ref)

    def effective(self, module: str) -> TensorRef | None:
        if (saved := self._saved.get(module)) is not None:
            return None if self._is_base(module, saved) else saved
        if not self._base.tied:
            return self._changed.get(module)
        # Both, if there are two, have the same values.
        return next(iter(self._changed.values()), None)

    def _tie(self) -> None:
        """One matrix for both: PEFT saves it under both names."""
        found = {**self._copies, **self._saved}
        for module in (EMBED_TOKENS, LM_HEAD):
            if module not in found:
                raise AdapterRefusedError(
                    "TYING_INCOMPLETE",
                    f"ensure_weight_tying ties {EMBED_TOKENS} and {LM_HEAD}, but the file has no"
                    f" {module}.weight: save the adapter again",
                    {"module": module, "digest": self._adapter.manifest.digest},
                )
        if self._head_lora is not None or self._adapter.manifest.trained_tokens:
            what = "a LoRA" if self._head_lora is not None else "trained tokens"
            raise _unclear(
                self._adapter,
                f"ensure_weight_tying ties {LM_HEAD} to {EMBED_TOKENS}, and there is {what}, too",
            )
        one = found[EMBED_TOKENS]
        if not _are_equal(self._adapter, one, found[LM_HEAD]):
            raise _unclear(
                self._adapter,
                f"ensure_weight_tying ties {EMBED_TOKENS} and {LM_HEAD}, but the file has different"
                " weights for them",
            )
        self._saved = {EMBED_TOKENS: one, LM_HEAD: one}
        self._copies = {}

    def _check_copy(self, module: str, ref: TensorRef) -> None:
        """Of one that differs from the base's, and was saved without being asked for."""
        if self._adapter.manifest.config.trained_tokens:
            raise self._changed_error(ref, "with trainable_token_indices")
        if self._adapter.manifest.config.invocation_tokens:
            raise self._changed_error(ref, "with alora_invocation_tokens", "train it as LoRA alone")
        reaches_head = module == LM_HEAD or (self._base.tied and LM_HEAD not in self._saved)
        if self._head_lora is not None and reaches_head:
            raise self._changed_error(ref, f"below a LoRA on {LM_HEAD}")
        if not self._base.tied:
            return
        for other in self._copies.values():
            if other is not ref and not _are_equal(self._adapter, other, ref):
                raise _unclear(
                    self._adapter,
                    f"the base model's {LM_HEAD} is tied to its {EMBED_TOKENS}, and the file has"
                    " different weights for them, one of which would overwrite the other",
                )

    def _changed_error(
        self,
        ref: TensorRef,
        where: str,
        way_out: str = "train it with modules_to_save, or as LoRA alone",
    ) -> AdapterRefusedError:
        return AdapterRefusedError(
            "BASE_TENSOR_CHANGED",
            f"the adapter carries its own {ref.name}, which differs from the base model's: that is"
            f" not served {where}; {way_out}",
            {"tensor": ref.name, "digest": self._adapter.manifest.digest},
        )

    def _is_base(self, module: str, ref: TensorRef) -> bool:
        mine = self._base.lm_head if module == LM_HEAD else self._base.embed
        return _has_rows(self._adapter, ref, mine)


def _has_rows(adapter: ParsedAdapter, ref: TensorRef, mine: torch.Tensor) -> bool:
    """Whether the tensor, in the dtype of `mine`, has its values."""
    for start in range(0, len(mine), _ROWS_AT_ONCE):
        pace.rest()
        rows = mine[start : start + _ROWS_AT_ONCE].cpu()
        theirs = stored_rows(adapter, ref, start, start + len(rows))
        if not torch.equal(theirs.to(rows.dtype), rows):
            return False
    return True


def _are_equal(adapter: ParsedAdapter, one: TensorRef, other: TensorRef) -> bool:
    """Stored alike, to the bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    mine, theirs = adapter.view(one), adapter.view(other)
    for start in range(0, len(mine), _BYTES_AT_ONCE):
        pace.rest()
        some = slice(start, start + _BYTES_AT_ONCE)
        # Memoryviews compare byte by byte, and keep other threads from running.
        if not np.array_equal(np.frombuffer(mine[some], "u1"), np.frombuffer(theirs[some], "u1")):
            return False
    return True


def _tokens(
    base: ModelWeights, adapter: ParsedAdapter, has_head_lora: bool
) -> tuple[TrainedTokens | None, TrainedTokens | None]:
    """The embedding's and the head's."""
    manifest = adapter.manifest
    asked = manifest.config.trained_tokens
    rows = {each.module: each for each in manifest.trained_tokens}
    embedding, head = rows.get(EMBED_TOKENS), rows.get(LM_HEAD)
    if not base.tied:
        if LM_HEAD in asked and head is None:
            raise AdapterRefusedError(
                "TYING_INCOMPLETE",
                f"the file has no trained tokens of {LM_HEAD}, as if it were tied to"
                f" {EMBED_TOKENS}; it is not in this base model: the adapter is of another one",
                {"module": LM_HEAD, "digest": manifest.digest},
            )
        return embedding, head
    if embedding is None:
        return None, head
    if asked.get(LM_HEAD, embedding.indices) != embedding.indices:
        if manifest.config.ensure_weight_tying:
            raise _unclear(
                adapter,
                f"ensure_weight_tying ties {EMBED_TOKENS} and {LM_HEAD}, but"
                " trainable_token_indices names different tokens of them",
            )
        return embedding, head
    if LM_HEAD in manifest.config.modules_to_save or (has_head_lora and manifest.config.use_dora):
        what = "has DoRA" if has_head_lora else "is in modules_to_save"
        raise _unclear(
            adapter,
            f"trained tokens of {EMBED_TOKENS} are those of the tied {LM_HEAD}, too, which {what}:"
            " PEFT fails on that",
        )
    if head is not None and not _are_equal(adapter, head.ref, embedding.ref):
        raise _unclear(
            adapter,
            f"the same tokens of {EMBED_TOKENS} and the tied {LM_HEAD} have different rows",
        )
    return embedding, embedding


def _lora(
    base: ModelWeights, adapter: ParsedAdapter, module: LoraModule | None
) -> LoraModule | None:
    if module is not None and base.tied and adapter.manifest.config.ensure_weight_tying:
        raise _unclear(
            adapter,
            f"ensure_weight_tying ties a LoRA on {LM_HEAD} to that on {EMBED_TOKENS}: train it with"
            " modules_to_save, or without ensure_weight_tying",
        )
    return module


def _unclear(adapter: ParsedAdapter, problem: str) -> AdapterRefusedError:
    return AdapterRefusedError("TYING_UNCLEAR", f"{problem}", {"digest": adapter.manifest.digest})
