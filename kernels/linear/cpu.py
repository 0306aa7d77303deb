"""The base GEMM of bfloat16 weights on CPUs with AVX-512 but no AMX, in the layout that suits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kernels.cpu.features import has, name
from kernels.cpu.program import Program
from kernels.linear import half, pairs, wide
from kernels.linear.arguments import (
    interleave_arguments,
    interleaved_size,
    multiply_arguments,
    scratch,
)


@dataclass(frozen=True)
class Layout:
    """How a matrix is packed, and what computes with it. Which one it is, is told by its dtype."""

    dtype: torch.dtype
    panel: int  # output features side by side
    group: int  # input features side by side
    pack: Callable[[torch.Tensor], torch.Tensor]
    unpack: Callable[[torch.Tensor], torch.Tensor]
    features_of: Callable[[torch.Tensor], int]
    interleave: Callable[[], Any] | None  # None: inputs are read as they stand
    multiply: Callable[[], Any]
    interleave_several: Callable[[], Any] | None  # as `arguments.several_arguments` tells
    multiply_several: Callable[[], Any]


WIDE = Layout(
    dtype=torch.bfloat16,
    panel=wide.PANEL,
    group=1,
    pack=wide.pack,
    unpack=wide.unpack,
    features_of=lambda panels: panels.shape[1],
    interleave=wide.interleave_work,
    multiply=wide.multiply_work,
    interleave_several=wide.interleave_several_work,
    multiply_several=wide.multiply_several_work,
)
HALF = Layout(
    dtype=torch.float16,
    panel=half.PANEL,
    group=1,
    pack=half.pack,
    unpack=half.unpack,
    features_of=half.features_of,
    interleave=half.interleave_work,
    multiply=half.multiply_work,
    interleave_several=half.interleave_several_work,
    multiply_several=half.multiply_several_work,
)
PAIRS = Layout(
    dtype=torch.int32,
    panel=pairs.PANEL,
    group=2,
    pack=pairs.pack,
    unpack=pairs.unpack,
    features_of=pairs.features_of,
    interleave=None,
    multiply=pairs.multiply_work,
    interleave_several=None,
    multiply_several=pairs.multiply_several_work,
)
_BY_DTYPE = {layout.dtype: layout for layout in (WIDE, HALF, PAIRS)}


@cache
def is_best() -> bool:
    """Whether this processor is one that these kernels are for."""
    return has("avx512f") and not has("amx-bf16")


@cache
def layouts() -> tuple[Layout, ...]:
    """Those that this processor can compute in, the fastest first."""
    if not is_best():
        return ()
    found = [HALF] if has("avx512fp16") else []
    found.append(WIDE)
    if has("avx512bf16"):
        # AMD's take half the time of float32's products, Intel's without AMX twice as much.
        found.insert(0 if name().startswith("znver") else len(found), PAIRS)
    return tuple(found)


def layout_for(weight: torch.Tensor) -> Layout | None:
    """For a plain [out, in] matrix; None where there is none."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return None
    outputs, inputs = weight.shape
    fits = (each for each in layouts() if not (outputs % each.panel or inputs % each.group))
    return next(fits, None)


def is_packed(weight: object) -> bool:
    """Whether these are packed weights, of all that `kernels.linear.op` takes."""
    return isinstance(weight, torch.Tensor) and weight.dim() == 3


def layout_of(panels: torch.Tensor) -> Layout:
    """Of packed weights."""
    return _BY_DTYPE[panels.dtype]


def features_of(panels: torch.Tensor) -> tuple[int, int]:
    """(inputs, outputs) of packed weights."""
    layout = layout_of(panels)
    return layout.features_of(panels), panels.shape[0] * layout.panel


def unpack(panels: torch.Tensor) -> torch.Tensor:
    return layout_of(panels).unpack(panels)


def workers_of(layout: Layout) -> tuple[int, int]:
    """Addresses of what interleaves, 0 where nothing does, and of what multiplies."""
    interleave = layout.interleave().address if layout.interleave is not None else 0
    return interleave, layout.multiply().address


def linear(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `kernels.linear.op.linear`, with packed weights."""
    num_tokens, in_features = x.shape
    inputs, outputs = features_of(panels)
    if in_features != inputs or x.dtype is not torch.bfloat16:
        raise ValueError(f"x {x.dtype} {tuple(x.shape)}, weights of {inputs} bfloat16 inputs")
    if bias is not None and (bias.shape != (outputs,) or bias.dtype is not torch.bfloat16):
        raise ValueError(f"bias {bias.dtype} {tuple(bias.shape)}, {outputs} bfloat16 outputs")
    y = x.new_empty(num_tokens, outputs)
    if num_tokens == 0:
        return y
    x = x.contiguous()
    layout = layout_of(panels)
    program = _program(layout)
    interleave, multiply = program.arguments[0]
    inputs = x.data_ptr()
    if layout.interleave is not None:
        scratch.grow(interleaved_size(num_tokens, in_features))
        inputs = scratch.x.ctypes.data
        told = interleave_arguments(num_tokens, in_features, x.data_ptr(), inputs)
        interleave[: len(told)] = told
    told = multiply_arguments(
        num_tokens,
        in_features,
        panels.shape[0],
        inputs,
        panels.data_ptr(),
        bias.data_ptr() if bias is not None else 0,
        y.data_ptr(),
    )
    multiply[: len(told)] = told
    program.run(0, 1)
    return y


@cache
def _program(layout: Layout) -> Program:
    program = Program(1, 2)
    program.workers[0] = workers_of(layout)
    return program


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled."""
    for layout in layouts():
        weight = layout.pack(torch.zeros(layout.panel, layout.group, dtype=torch.bfloat16))
        linear(torch.zeros(1, layout.group, dtype=torch.bfloat16), weight, None)
