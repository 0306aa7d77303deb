"""What a config.json says of how its checkpoint is quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from dataplane.errors import UnsupportedModelError
from dataplane.models.fields import unsupported
from dataplane.models.quantization.names import Matcher
from dataplane.models.quantization.stored import ModuleTensors
from kernels.quantized.matrix import QuantizedMatrix

HEAD = "lm_head"


class Scheme(Protocol):
    """How a matrix lies in the checkpoint. `repr` tells all of it."""

    def read(
        self, tensors: ModuleTensors, shape: torch.Size, dtype: torch.dtype
    ) -> QuantizedMatrix:
        """shape: [out, in]. dtype: of the model. On the CPU.

        Raises: CheckpointError.
        """
        ...


class Choice(NamedTuple):
    """scheme: None where the module is plain."""

    scheme: Scheme | None
    is_sure: bool = True  # else the checkpoint decides whether it is plain after all


class Selection(Protocol):
    """Which modules have which scheme. `repr` tells all of it."""

    def choose(self, module: str, matcher: Matcher) -> Choice: ...


@dataclass(frozen=True)
class SkipList:
    """One scheme for all modules but those that a list names.

    Programs differ in how they read such lists, and in whether the head is in them where nobody
    said so: where that matters, what the checkpoint has decides.
    """

    scheme: Scheme
    listed_in: str = field(repr=False, compare=False)
    names: tuple[str, ...]

    def choose(self, module: str, matcher: Matcher) -> Choice:
        if matcher.is_skipped(self.listed_in, self.names, module):
            return Choice(None)
        is_sure = module != HEAD and not matcher.may_be_skipped(self.names, module)
        return Choice(self.scheme, is_sure)


@dataclass(frozen=True)
class Quantization:
    """Of one checkpoint. Its `repr` is a part of the model's fingerprint."""

    method: str
    selection: Selection

    def choices(
        self, modules: Iterable[str], spell: Callable[[str], Sequence[str]] | None = None
    ) -> dict[str, Choice]:
        """spell: names by which the description may mean a module; None: its own alone. Where
        they are not chosen alike, what the checkpoint has decides.

        Raises: UnsupportedModelError for expressions that take too long.
        """
        matcher = Matcher()
        found: dict[str, Choice] = {}
        for each in modules:
            names = [each] if spell is None else spell(each)
            found[each] = self._one([self.selection.choose(name, matcher) for name in names], each)
        return found

    def _one(self, choices: Sequence[Choice], module: str) -> Choice:
        first = next((each for each in choices if each.scheme is not None), choices[0])
        if any(each.scheme not in (None, first.scheme) for each in choices):
            raise unsupported(
                "quantization_config",
                f"unclear for {module}, whose names mean different schemes",
                "one scheme for each module",
            )
        return first if all(each == first for each in choices) else Choice(first.scheme, False)


def refuse_ranks(quantization: Quantization, size: int) -> UnsupportedModelError:
    """Several ranks would have to cut codes, groups and scales alike."""
    field = "quantization_config.quant_method"
    return UnsupportedModelError(
        "TENSOR_PARALLEL_QUANTIZED",
        f"--tensor-parallel {size}: config.json's {field} is {quantization.method}, and quantised"
        " models are served by one device; use --tensor-parallel 1, or the plain model",
        {"field": field, "value": quantization.method, "tensor_parallel": str(size)},
    )
