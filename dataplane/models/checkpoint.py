"""The tensors of a checkpoint, by name over one or many safetensors files."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from dataplane.errors import CheckpointError
from dataplane.models.safetensors_file import FLOATS, StoredTensor, TensorReader, read_header

_ROWS_AT_ONCE = 512


class Checkpoint:
    """Tensor by name over one or many safetensors files."""

    def __init__(
        self,
        model_dir: Path,
        stack: ExitStack,
        rename: Callable[[str], str | None] | None = None,
    ) -> None:
        """rename: from names in the files to those that are asked for; None: as if the tensor were
        not there.

        Raises: CheckpointError.
        """
        self._tensors: dict[str, StoredTensor] = {}
        self._files: dict[Path, BinaryIO] = {}
        self._reader = TensorReader()
        paths = sorted(_files(model_dir))
        if not paths:
            raise CheckpointError(
                "CHECKPOINT_MISSING",
                f"{model_dir} holds no model.safetensors: pickled weights are never read,"
                " convert them",
                {"model": str(model_dir)},
            )
        for path in paths:
            header = read_header(path)
            self._tensors.update(
                header if rename is None else _renamed(header, rename, self._tensors)
            )
            self._files[path] = stack.enter_context(path.open("rb", buffering=0))
        self._names = sorted(self._tensors)

    def parts(self, module: str) -> dict[str, StoredTensor]:
        """A module's tensors by what follows its name and a dot."""
        prefix = f"{module}."
        found: dict[str, StoredTensor] = {}
        for name in self._names[bisect_left(self._names, prefix) :]:
            if not name.startswith(prefix):
                break
            found[name.removeprefix(prefix)] = self._tensors[name]
        return found

    def is_plain(self, module: str) -> bool:
        """Whether the module's weight is there as it is, and not quantised."""
        tensor = self._tensors.get(f"{module}.weight")
        return tensor is not None and tensor.dtype in FLOATS

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """All of it as it is stored, on the CPU. Who calls knows its size."""
        found = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._reader.read_into(found, tensor, self._files[tensor.path])
        return found

    def check(self, name: str, shape: Sequence[int]) -> None:
        """That it can be copied into a tensor of that shape, which may then be made: by what
        config.json says alone it could be of any size."""
        self._stored(name, torch.Size(shape))

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        tensor = self._stored(name, target.shape)
        self._reader.read_into(target, tensor, self._files[tensor.path])

    def copy_part_into(
        self, target: torch.Tensor, name: str, shape: torch.Size, rows: slice, columns: slice
    ) -> None:
        """Rows and columns of a matrix of that shape."""
        tensor = self._stored(name, shape)
        file = self._files[tensor.path]
        row_bytes = shape[1] * tensor.dtype.itemsize
        whole_rows = columns == slice(0, shape[1])
        step = len(target) if whole_rows else _ROWS_AT_ONCE
        for first in range(0, len(target), max(step, 1)):
            part = target[first : first + step]
            start = tensor.start + (rows.start + first) * row_bytes
            stored = replace(tensor, shape=(len(part), shape[1]), start=start)
            read = part if whole_rows else part.new_empty(stored.shape)
            self._reader.read_into(read, stored, file)
            if not whole_rows:
                part.copy_(read[:, columns])

    def copy_item_into(
        self, target: torch.Tensor, name: str, shape: torch.Size, index: int
    ) -> None:
        """target: one of those that a tensor of that shape has along its first dimension."""
        tensor = self._stored(name, shape)
        start = tensor.start + index * target.numel() * tensor.dtype.itemsize
        part = replace(tensor, shape=tuple(target.shape), start=start)
        self._reader.read_into(target, part, self._files[tensor.path])

    def holds(self, name: str, matrix: torch.Tensor) -> bool:
        """Whether the checkpoint, if it has this tensor at all, has the values of `matrix`."""
        if name not in self._tensors:
            return True
        tensor = self._stored(name, matrix.shape)
        row_bytes = matrix.shape[1] * tensor.dtype.itemsize
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            rows = matrix[start : start + _ROWS_AT_ONCE]
            part = replace(tensor, shape=tuple(rows.shape), start=tensor.start + start * row_bytes)
            found = torch.empty_like(rows)
            self._reader.read_into(found, part, self._files[tensor.path])
            if not torch.equal(found, rows):
                return False
        return True

    def _stored(self, name: str, shape: torch.Size) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                "TENSOR_MISSING",
                f"the checkpoint has no tensor {name}, which config.json asks for: is a shard"
                " missing?",
                {"tensor": name},
            )
        if tensor.shape != shape:
            raise CheckpointError(
                "TENSOR_SHAPE",
                f"{name} is {list(tensor.shape)[:8]}; config.json says {list(shape)}: they"
                " are of two models",
                {"tensor": name},
            )
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                "CHECKPOINT_DTYPE",
                f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}; it has to be"
                " plain, in float32, float16 or bfloat16: quantised projections need the"
                " quantization_config in config.json, and quantised embeddings, norms and biases"
                " are not supported",
                {"tensor": name},
            )
        return tensor


def _renamed(
    header: Mapping[str, StoredTensor],
    rename: Callable[[str], str | None],
    known: Container[str],
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in header.items():
        new_name = rename(name)
        if new_name is None:
            continue
        if new_name in found or new_name in known:
            raise CheckpointError(
                "CHECKPOINT_UNREADABLE",
                f"the checkpoint has {new_name} under two names, {name[:200]} is one of them: it"
                " is not clear which one counts",
                {"tensor": name[:200]},
            )
        found[new_name] = tensor
    return found


def _files(model_dir: Path) -> Iterator[Path]:
    """The single file if there is one, as in transformers: an index beside it is out of date."""
    index = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if single.is_file():
        yield single
    if single.is_file() or not index.is_file():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(
            "CHECKPOINT_UNREADABLE", f"{index.name} has no weight_map", {"file": index.name}
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                "CHECKPOINT_UNREADABLE",
                f"{index.name} points outside: {str(name)[:200]}",
                {"file": index.name},
            )
        yield model_dir / name
