"""A weight matrix in 4 or 8 bits, as quantised checkpoints have it: codes, and what they stand for.

The layout is defined here, and `QuantizedMatrix.dequantize` says what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from kernels.gpu.staging import staged

Kind = Literal["uint4", "uint8", "float8_e4m3", "nf4", "fp4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of scales, and of what a matrix stands for."""

TABLES: dict[Kind, tuple[float, ...]] = {
    # Dettmers et al. 2023, QLoRA, appendix E: quantiles of the normal distribution, in [-1, 1].
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # bitsandbytes' FP4: a sign, then these over 12; not the floats of the OCP's MX formats.
    "fp4": tuple(
        sign * each / 12
        for sign in (1.0, -1.0)
        for each in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
    ),
}
"""What a code stands for, times its scale; each as a float32."""

_ELEMENTS_AT_ONCE = 1 << 22
"""Of a dequantised matrix: bounds what the way there takes beside it."""


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """[out, in] weights. The inputs are in groups; each output has a scale for each group.

    Only shapes, dtypes and devices are proved. Who makes one of untrusted values has made sure
    that group_index is in [0, num_groups), and zeros of 4 bits below 16.

    Raises: ValueError for tensors that do not fit together.
    """

    codes: torch.Tensor
    """[out, in * bits / 8] uint8, contiguous. 4 bits: two codes a byte, that of the even input in
    the lower half. float8_e4m3: the bits of torch.float8_e4m3fn."""
    scales: torch.Tensor  # [num_groups, out] float32, bfloat16 or float16, contiguous
    zeros: torch.Tensor | None
    """[num_groups, out] uint8, contiguous: zero points. None: half of the range of uint4 and uint8;
    others have none."""
    group_index: torch.Tensor | None
    """[in] int32, contiguous: the group of each input. None: as many inputs in each, in order."""
    kind: Kind
    dtype: torch.dtype  # what `dequantize` gives, and `linear` takes and gives

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: one of {', '.join(KINDS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype}: float32, bfloat16 or float16")
        codes, scales = self.codes, self.scales
        if codes.dim() != 2 or codes.dtype is not torch.uint8 or not codes.numel():
            raise ValueError(f"codes {codes.dtype} {tuple(codes.shape)}: [out, bytes] uint8")
        outputs, inputs = self.shape
        if scales.dim() != 2 or scales.shape[1] != outputs or not len(scales):
            raise ValueError(f"scales {tuple(scales.shape)}: [num_groups, {outputs}]")
        if scales.numel() >= 1 << 31:
            raise ValueError(f"scales {tuple(scales.shape)}: below 2**31 elements")
        if scales.dtype not in DTYPES:
            raise ValueError(f"scales {scales.dtype}: float32, bfloat16 or float16")
        if self.zeros is not None:
            if self.kind not in ("uint4", "uint8"):
                raise ValueError(f"{self.kind} has no zero points")
            if self.zeros.shape != scales.shape or self.zeros.dtype is not torch.uint8:
                found = f"{self.zeros.dtype} {tuple(self.zeros.shape)}"
                raise ValueError(f"zeros {found}: {tuple(scales.shape)} uint8")
        if self.group_index is None:
            if inputs % self.num_groups:
                raise ValueError(f"{inputs} inputs are not {self.num_groups} equal groups")
        elif self.group_index.shape != (inputs,) or self.group_index.dtype is not torch.int32:
            found = f"{self.group_index.dtype} {tuple(self.group_index.shape)}"
            raise ValueError(f"group_index {found}: ({inputs},) int32")
        for name, tensor in self._tensors().items():
            if not tensor.is_contiguous():
                raise ValueError(f"{name} of strides {tensor.stride()} is not contiguous")
            if tensor.device != codes.device:
                raise ValueError(f"{name} is on {tensor.device}, codes are on {codes.device}")

    @property
    def bits(self) -> int:
        return 8 if self.kind in ("uint8", "float8_e4m3") else 4

    @property
    def shape(self) -> torch.Size:
        """[out, in]"""
        return torch.Size((self.codes.shape[0], self.codes.shape[1] * 8 // self.bits))

    @property
    def num_groups(self) -> int:
        return self.scales.shape[0]

    @property
    def group_size(self) -> int:
        """Inputs of a group where they are in order."""
        return self.shape[1] // self.num_groups

    @property
    def zero(self) -> int:
        """Of all groups, where `zeros` is None."""
        return 1 << (self.bits - 1) if self.kind in ("uint4", "uint8") else 0

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def num_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self._tensors().values())

    def to(self, device: torch.device) -> QuantizedMatrix:
        """The same one, or a copy on another device."""
        if device == self.device:
            return self
        return replace(self, **{name: each.to(device) for name, each in self._tensors().items()})

    def dequantize(
        self, rows: slice | None = None, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Semantics, with g the group of input k, in float32, rounded once to `dtype`:
            uint4, uint8: (codes[n, k] - zeros[g, n]) * scales[g, n]
            float8_e4m3: codes[n, k] * scales[g, n]
            nf4, fp4: TABLES[kind][codes[n, k]] * scales[g, n]

        rows: of the outputs, in steps of 1; None: all of them
        out: [rows, in] of `dtype`, on the matrix's device: written and returned

        Raises: ValueError for an `out` that does not fit.
        """
        outputs, inputs = self.shape
        start, stop, step = (rows or slice(None)).indices(outputs)
        if step != 1:
            raise ValueError(f"rows {rows}: in steps of 1")
        shape = (max(stop - start, 0), inputs)
        if out is None:
            out = torch.empty(shape, dtype=self.dtype, device=self.device)
        elif out.shape != shape or out.dtype is not self.dtype:
            raise ValueError(f"out {out.dtype} {tuple(out.shape)}: {shape} {self.dtype}")
        at_once = max(1, _ELEMENTS_AT_ONCE // inputs)
        for first in range(start, stop, at_once):
            last = min(first + at_once, stop)
            out[first - start : last - start] = self._values(slice(first, last))
        return out

    def _values(self, rows: slice) -> torch.Tensor:
        """[rows, in] float32"""
        values = _decoded(self.codes[rows], self.kind)
        if self.kind in ("uint4", "uint8"):
            values -= self.zero if self.zeros is None else self._spread(self.zeros, rows)
        return values.mul_(self._spread(self.scales, rows))

    def _spread(self, of_groups: torch.Tensor, rows: slice) -> torch.Tensor:
        """[num_groups, out] -> [rows, in] float32: of each input's group."""
        values = of_groups[:, rows].T.float()
        if self.group_index is not None:
            return values[:, self.group_index.long()]
        return values.repeat_interleave(self.group_size, 1)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {
            "codes": self.codes,
            "scales": self.scales,
            "zeros": self.zeros,
            "group_index": self.group_index,
        }
        return {name: each for name, each in found.items() if each is not None}


def stack(parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix | None:
    """One matrix of the parts' rows, as of projections that share an input. None where kinds,
    dtypes or the inputs' groups differ: these have no common matrix but a dequantised one.

    Raises: ValueError for no part, or for parts of different numbers of inputs or devices.
    """
    if not parts:
        raise ValueError("no part")
    first = parts[0]
    if any(each.shape[1] != first.shape[1] for each in parts):
        raise ValueError(f"inputs differ: {[each.shape[1] for each in parts]}")
    if any(each.device != first.device for each in parts):
        raise ValueError(f"devices differ: {[str(each.device) for each in parts]}")
    if not all(_fit(each, first) for each in parts):
        return None
    if len(parts) == 1:
        return first
    zeros = None
    if any(each.zeros is not None for each in parts):
        zeros = torch.cat([_zeros(each) for each in parts], 1)
    return replace(
        first,
        codes=torch.cat([each.codes for each in parts]),
        scales=torch.cat([each.scales for each in parts], 1),
        zeros=zeros,
    )


def _fit(part: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    if (part.kind, part.dtype) != (other.kind, other.dtype):
        return False
    if part.scales.dtype is not other.scales.dtype or part.num_groups != other.num_groups:
        return False
    if part.group_index is None or other.group_index is None:
        return part.group_index is other.group_index
    return torch.equal(part.group_index, other.group_index)


def _zeros(part: QuantizedMatrix) -> torch.Tensor:
    if part.zeros is not None:
        return part.zeros
    return torch.full_like(part.scales, part.zero, dtype=torch.uint8)


def _decoded(codes: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What codes stand for, before zero points and scales: [rows, bytes] -> [rows, in] float32."""
    if kind == "float8_e4m3":
        return codes.view(torch.float8_e4m3fn).float()
    if kind == "uint8":
        return codes.float()
    halves = torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    if kind == "uint4":
        return halves.float()
    return staged(TABLES[kind], torch.float32, codes.device)[halves.int()]
