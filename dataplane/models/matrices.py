"""Matrices of the forward pass, read as the checkpoint has them: plain or quantised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from dataplane.errors import CheckpointError
from dataplane.models.checkpoint import Checkpoint
from dataplane.models.quantization.description import Choice, Quantization
from dataplane.models.quantization.stored import ModuleTensors
from kernels.linear.op import Weight
from kernels.quantized.matrix import QuantizedMatrix, stack

log = logging.getLogger(__name__)

_PLAIN = Choice(None)
_ELEMENTS_AT_ONCE = 1 << 19


class Matrices:
    """Raises: UnsupportedModelError for expressions in config.json that take too long."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization | None,
        modules: Iterable[str],
        dtype: torch.dtype,
        device: torch.device,
        spell: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        """modules: full names of all that can be quantised. dtype, device: of the model. spell: as
        `Quantization.choices` has it."""
        self._checkpoint = checkpoint
        self._quantization = quantization
        self._choices = {} if quantization is None else quantization.choices(modules, spell)
        self._dtype = dtype
        self._device = device
        self._has_warned = False

    def read(self, modules: Sequence[tuple[str, int]], in_features: int) -> Weight:
        """modules: full names and outputs of those that are stacked. On a GPU quantised ones stay
        so, else each is dequantised as it is read.

        Raises: CheckpointError.
        """
        plain = {name: self._is_plain(name) for name, _ in modules}
        shapes = [(name, torch.Size((outputs, in_features))) for name, outputs in modules]
        parts: dict[str, QuantizedMatrix] = {}
        if self._device.type == "cuda" and not any(plain.values()):
            parts = {name: self._quantized(name, shape) for name, shape in shapes}
            whole = stack(list(parts.values()))
            if whole is not None:
                return whole.to(self._device)
            self._warn([name for name, _ in modules])
        for name, shape in shapes:
            if plain[name]:
                self._checkpoint.check(f"{name}.weight", shape)
            elif not parts:
                parts[name] = self._quantized(name, shape)
        num_rows = sum(outputs for _, outputs in modules)
        weight = torch.empty((num_rows, in_features), dtype=self._dtype, device=self._device)
        start = 0
        for name, shape in shapes:
            rows = weight[start : start + shape[0]]
            start += shape[0]
            if plain[name]:
                self._checkpoint.copy_into(rows, f"{name}.weight")
                continue
            part = parts.pop(name, None) or self._quantized(name, shape)
            _dequantize(part.to(self._device), rows)
        return weight

    def _quantized(self, name: str, shape: torch.Size) -> QuantizedMatrix:
        scheme = self._choices[name].scheme
        assert scheme is not None
        tensors = ModuleTensors(self._checkpoint, name)
        matrix = scheme.read(tensors, shape, self._dtype)
        tensors.finish()
        return matrix

    def _is_plain(self, name: str) -> bool:
        """What config.json says, proved by what the checkpoint has."""
        if self._quantization is None:
            return True
        choice = self._choices.get(name, _PLAIN)
        parts = self._checkpoint.parts(name)
        is_plain = self._checkpoint.is_plain(name)
        if is_plain and choice.scheme is not None and choice.is_sure:
            raise _mismatch(
                f"{name}.weight",
                f"is plain, but by config.json's quantization_config {name} is quantised: add it to"
                " the modules that are not, or remove quantization_config where nothing is",
            )
        if choice.scheme is None or is_plain:
            strange = sorted(parts.keys() - {"weight", "bias"})
            if strange or (parts and not is_plain):
                raise _mismatch(
                    f"{name}.{(strange or ['weight'])[0][:200]}",
                    f"is of a quantised module, but {name} is not quantised by config.json's"
                    " quantization_config, or by its own weight: they are of two quantisations,"
                    " fetch the checkpoint again",
                )
            return True
        return False

    def _warn(self, names: Sequence[str]) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s are quantised in ways that differ (groups, kinds or dtypes): they and others"
                " like them are served dequantised, which takes more memory",
                ", ".join(names),
            )


def _dequantize(matrix: QuantizedMatrix, out: torch.Tensor) -> None:
    """Little at a time: what lies beside the weights while they load is float32."""
    step = max(1, _ELEMENTS_AT_ONCE // matrix.shape[1])
    for start in range(0, len(out), step):
        rows = slice(start, min(start + step, len(out)))
        matrix.dequantize(rows, out=out[rows])


def _mismatch(tensor: str, problem: str) -> CheckpointError:
    return CheckpointError("QUANTIZATION_MISMATCH", f"{tensor} {problem}", {"tensor": tensor})
