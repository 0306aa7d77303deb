"""Groups of a matrix's inputs, which share a scale for each output."""

from __future__ import annotations

import torch

from dataplane.models.quantization.stored import ModuleTensors


def count_groups(tensors: ModuleTensors, name: str, inputs: int, group_size: int | None) -> int:
    """group_size: None: one group. name: of the tensor that errors name.

    Raises: CheckpointError.
    """
    if group_size is None:
        return 1
    if inputs % group_size:
        raise tensors.invalid(
            name,
            f"has rows of {inputs}, which are no multiple of quantization_config's group_size"
            f" {group_size}",
            "quantise it with a group size that divides them",
        )
    return inputs // group_size


def check_whole(
    tensors: ModuleTensors, name: str, shape: torch.Size, *, outputs: int = 1, inputs: int = 1
) -> None:
    """outputs, inputs: that must be multiples of these to be packed. Raises: CheckpointError."""
    if shape[0] % outputs or shape[1] % inputs:
        raise tensors.invalid(
            name,
            f"packs a matrix {list(shape)}, which cannot be: outputs come in {outputs} and inputs"
            f" in {inputs}",
            "use a checkpoint of another kind",
        )


def group_index(
    tensors: ModuleTensors, name: str, inputs: int, num_groups: int
) -> torch.Tensor | None:
    """[in] int32: of each input, as stored; None where they are in order and equal.

    Raises: CheckpointError.
    """
    found = tensors.take(name, (inputs,), (torch.int32,))
    if not bool(((found >= 0) & (found < num_groups)).all()):
        raise tensors.invalid(name, f"has groups that are not in 0 to {num_groups - 1}")
    in_order = torch.arange(num_groups, dtype=torch.int32).repeat_interleave(inputs // num_groups)
    return None if torch.equal(found, in_order) else found
