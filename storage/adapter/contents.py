"""A file's tensors by what they belong to."""

from __future__ import annotations

from collections.abc import Mapping

from storage.adapter.keys import CopyKey, TokensKey, parse_key
from storage.adapter.vocabulary import LM_HEAD
from storage.adapter.weights import TensorRef
from storage.errors import BadWeightsError, excerpt


class FileContents:
    """biases: trained ones of the base. copies: whole embedding and head, and `wrapped`, those of
    them that lie below a LoRA. tokens: rows for some tokens."""

    def __init__(self, header: Mapping[str, TensorRef]) -> None:
        """Raises: UnsupportedFeatureError, BadWeightsError for names that are not understood."""
        self.pairs: dict[tuple[int | None, str], dict[str, TensorRef]] = {}
        self.biases: dict[tuple[int | None, str], TensorRef] = {}
        self.copies: dict[str, TensorRef] = {}  # by module
        self.wrapped: set[str] = set()
        self.tokens: dict[str, TensorRef] = {}  # by module
        self._roots: set[str] = set()
        for name, ref in header.items():
            self._add(name, ref)

    def layers_root(self) -> str:
        """Raises: BadWeightsError when there is no LoRA, or not one root."""
        if not self.pairs:
            raise BadWeightsError("adapter_model.safetensors holds no lora_A and lora_B tensors")
        if len(self._roots) > 1:
            raise BadWeightsError(
                "keys mix 'base_model.model.layers' and 'base_model.model.model.'"
            )
        return next(iter(self._roots), "model.")

    def _add(self, name: str, ref: TensorRef) -> None:
        key = parse_key(name)
        if not isinstance(key, CopyKey) and key.module != LM_HEAD:
            self._roots.add(key.layers_root)
        if isinstance(key, CopyKey):
            if key.module in self.copies:
                raise BadWeightsError(f"tensor {excerpt(name)} repeats {key.base_name} of the base")
            self.copies[key.module] = ref
            if key.is_wrapped:
                self.wrapped.add(key.module)
            return
        if isinstance(key, TokensKey):
            place, part = self.tokens, key.module
        elif key.part == "bias":
            place, part = self.biases, (key.layer, key.module)
        else:
            place, part = self.pairs.setdefault((key.layer, key.module), {}), key.part
        if part in place:
            raise BadWeightsError(f"tensor {excerpt(name)} appears twice, also without infix")
        place[part] = ref  # pyright: ignore[reportArgumentType]
