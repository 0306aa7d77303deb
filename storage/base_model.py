"""What the storage room must know of a base model: the names and shapes of its linear modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from storage.errors import BadConfigError, excerpt


@dataclass(frozen=True)
class BaseModelSpec:
    """`layer_modules`: name within a decoder layer → (in, out), e.g. {"mlp.up_proj": (64, 256)}.

    `outer_modules`: name outside the layers → (in, out), e.g. {"lm_head": (hidden, vocab)}.
    Names are those of the Hugging Face implementation that adapters were trained on.
    """

    name: str
    num_layers: int
    layer_modules: Mapping[str, tuple[int, int]]
    outer_modules: Mapping[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_layers": self.num_layers,
            "layer_modules": {k: list(v) for k, v in self.layer_modules.items()},
            "outer_modules": {k: list(v) for k, v in self.outer_modules.items()},
        }

    @staticmethod
    def from_json(value: object) -> BaseModelSpec:
        """Inverse of `to_json`. Raises: BadConfigError naming the field that is wrong."""
        if not isinstance(value, dict):
            raise BadConfigError(f"base model spec must be an object, not {excerpt(value)}")
        fields = cast("dict[str, object]", value)
        name, num_layers = fields.get("name"), fields.get("num_layers")
        if not isinstance(name, str):
            raise BadConfigError(f"base model spec: name must be a string, not {excerpt(name)}")
        if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 1:
            raise BadConfigError(
                f"base model spec: num_layers must be a positive integer, not {excerpt(num_layers)}"
            )
        return BaseModelSpec(
            name=name,
            num_layers=num_layers,
            layer_modules=_shapes("layer_modules", fields.get("layer_modules")),
            outer_modules=_shapes("outer_modules", fields.get("outer_modules")),
        )


def _shapes(field: str, value: object) -> dict[str, tuple[int, int]]:
    if not isinstance(value, dict):
        raise BadConfigError(f"base model spec: {field} must be an object, not {excerpt(value)}")
    shapes: dict[str, tuple[int, int]] = {}
    for key, pair in cast("dict[object, object]", value).items():
        dims = cast("list[object]", pair) if isinstance(pair, list | tuple) else []
        sizes = [d for d in dims if isinstance(d, int) and not isinstance(d, bool) and d > 0]
        if not isinstance(key, str) or len(dims) != 2 or len(sizes) != 2:
            raise BadConfigError(
                f"base model spec: {field}[{excerpt(key)}] must be [in, out] of positive integers, "
                f"not {excerpt(cast('object', pair))}"
            )
        shapes[key] = (sizes[0], sizes[1])
    return shapes
