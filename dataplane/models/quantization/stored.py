"""The tensors of one quantised module: each proved before it is read, and none left over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dataplane.errors import CheckpointError
from dataplane.models.checkpoint import Checkpoint
from dataplane.models.safetensors_file import FLOATS

ACTIVATIONS = ("input_scale", "input_zero_point", "activation_scale", "input_global_scale")
"""For activations, which are never quantised here."""

_AS_IT_WAS = "fetch the checkpoint again, or use another one"


class ModuleTensors:
    """Raises: CheckpointError, each method, that names the tensor."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        self.module = module
        self._checkpoint = checkpoint
        self._parts = checkpoint.parts(module)
        self._left = set(self._parts) - {"bias"}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def size(self, name: str) -> int:
        """Its elements; 0 where there is no such tensor."""
        return math.prod(self._parts[name].shape) if name in self._parts else 0

    def take(
        self,
        name: str,
        shapes: Sequence[int] | Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
    ) -> torch.Tensor:
        """All of a tensor, as it is stored. shapes: one, or several of which it may have any."""
        tensor = self._parts.get(name)
        full = f"{self.module}.{name}"
        if tensor is None:
            raise CheckpointError(
                "TENSOR_MISSING",
                f"the checkpoint has no tensor {full}, which a module needs that is quantised as"
                " config.json's quantization_config says: is a shard missing?",
                {"tensor": full},
            )
        one = not shapes or isinstance(shapes[0], int)
        allowed = [tuple(each) for each in ([shapes] if one else shapes)]  # type: ignore[arg-type]
        if tensor.shape not in allowed:
            wanted = " or ".join(str(list(each)) for each in allowed)
            raise CheckpointError(
                "TENSOR_SHAPE",
                f"{full} is {list(tensor.shape)[:8]}; by config.json and its quantization_config it"
                f" is {wanted}: they are of two models, or of two quantisations",
                {"tensor": full},
            )
        if tensor.dtype not in dtypes:
            names = " or ".join(str(each).removeprefix("torch.") for each in dtypes)
            raise CheckpointError(
                "CHECKPOINT_DTYPE",
                f"{full} is stored as {str(tensor.dtype).removeprefix('torch.')}; by config.json's"
                f" quantization_config it is {names}",
                {"tensor": full},
            )
        self._left.discard(name)
        return self._checkpoint.read(tensor)

    def scales(self, name: str, shapes: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        found = self.take(name, shapes, FLOATS)
        if not bool(found.isfinite().all()):
            raise self.invalid(name, "has scales that are NaN or infinite")
        return found

    def ignore(self, *names: str) -> None:
        """These may be there; what they say does not matter."""
        self._left.difference_update(names)

    def invalid(self, name: str, problem: str, way_out: str = _AS_IT_WAS) -> CheckpointError:
        full = f"{self.module}.{name}"
        return CheckpointError(
            "QUANTIZATION_INVALID", f"{full} {problem}: {way_out}", {"tensor": full}
        )

    def finish(self) -> None:
        """What is there besides would change the weights in a way that is not known here."""
        if self._left:
            full = f"{self.module}.{min(self._left)[:200]}"
            raise CheckpointError(
                "QUANTIZATION_MISMATCH",
                f"{full} is no part of a module that is quantised as config.json's"
                " quantization_config says: they are of two quantisations, or it is of a kind that"
                " is not supported",
                {"tensor": full},
            )
