"""A file's tensors by what they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from storage.adapter.keys import CopyKey, TokensKey, VisionKey, head_root, parse_key
from storage.adapter.vocabulary import LM_HEAD
from storage.adapter.weights import TensorRef
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt


class FileContents:
    """biases: trained ones of the base. copies: whole embedding and head, and `wrapped`, those of
    them that lie below a LoRA. tokens: rows for some tokens. vision: what only images go through,
    by name; text does not depend on it."""

    def __init__(self, header: Mapping[str, TensorRef]) -> None:
        """Raises: UnsupportedFeatureError, BadWeightsError for names that are not understood."""
        self.pairs: dict[tuple[int | None, str], dict[str, TensorRef]] = {}
        self.biases: dict[tuple[int | None, str], TensorRef] = {}
        self.copies: dict[str, TensorRef] = {}  # by module
        self.wrapped: set[str] = set()
        self.tokens: dict[str, TensorRef] = {}  # by module
        self.vision: dict[str, TensorRef] = {}
        self._needs_vision_root = False
        self._roots: set[str] = set()
        self._head_roots: set[str] = set()
        for name, ref in header.items():
            self._add(name, ref)

    def layers_root(self) -> str:
        """Raises: BadWeightsError when there is no LoRA, or not one root; UnsupportedFeatureError
        when there is LoRA on what only images go through, and on nothing else."""
        if not self.pairs and self.vision:
            name = min(self.vision)
            raise UnsupportedFeatureError(
                f"the adapter changes nothing but what images go through ({excerpt(name)} and "
                "others), and only text is served: it would be the base model",
                metadata={"tensor": name[:200]},
            )
        if not self.pairs:
            raise BadWeightsError("adapter_model.safetensors holds no lora_A and lora_B tensors")
        if len(self._roots) > 1:
            raise BadWeightsError(f"keys mix {_shown(self._roots)}: they are of several models")
        root = next(iter(self._roots), None)
        if root is None:
            root = "language_model.model." if "language_model." in self._head_roots else "model."
        if self._head_roots - {head_root(root)}:
            raise BadWeightsError(
                f"keys mix {_shown([root])} and 'base_model.model.{self._head_roots.pop()}lm_head':"
                " they are of several models"
            )
        if self._needs_vision_root and "language_model." not in root:
            raise BadWeightsError(
                f"tensor {excerpt(min(self.vision))} is of a model that sees, but the file has"
                f" {_shown([root])}: they are of several models"
            )
        return root

    def _add(self, name: str, ref: TensorRef) -> None:
        key = parse_key(name)
        if isinstance(key, VisionKey):
            self.vision[name] = ref
            self._needs_vision_root |= not key.is_beside_text
            return
        if not isinstance(key, CopyKey):
            roots = self._head_roots if key.module == LM_HEAD else self._roots
            roots.add(key.layers_root)
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


def _shown(roots: Iterable[str]) -> str:
    return " and ".join(f"'base_model.model.{root}layers'" for root in sorted(roots))
