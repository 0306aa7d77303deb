"""Runs tests of Triton kernels under Triton's interpreter, which needs no GPU.

Whether a kernel is compiled or interpreted is settled when its module is imported, so these tests
have a process of their own, in which this module is a pytest plugin. Their modules are named
`interpreted_*.py`, so that pytest does not collect them elsewhere.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_OPTIONS = ["-q", "-m", "not gpu", "-p", "no:cacheprovider", "-p", __name__]


def run_interpreted(*tests: str, timeout_s: float = 600.0) -> None:
    """tests: what pytest takes, from the root of the repository. Raises: AssertionError with
    pytest's report when any fails, or when there are none."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos"), *filter(None, sys.path)]),
    }
    report = subprocess.run(
        [sys.executable, "-m", "pytest", *_OPTIONS, *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert report.returncode == 0, report.stdout[-20_000:] + report.stderr[-5_000:]


def _repair() -> None:
    """What the interpreter gets wrong: it keeps bfloat16 as bits and multiplies them as integers in
    `dot`, whose sums also have the order of the processor's BLAS, by which a row's bits may depend
    on the number of rows; it truncates to bfloat16 where GPUs round; up to 3.6 it also wants an int
    of an array of one element, which NumPy now refuses."""
    patch_lang_tensor = interpreter._patch_lang_tensor
    cast_impl = interpreter.InterpreterBuilder.cast_impl

    def patched(tensor: Any, scope: Any) -> None:
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def widened(builder: Any, handle: Any) -> Any:
        return builder.cast_impl(handle, tl.float32).data.astype(np.float64)

    def dot(self: Any, a: Any, b: Any, total: Any, *rest: Any) -> Any:
        product = np.matmul(widened(self, a), widened(self, b)).astype(total.data.dtype)
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast_impl(self, source, target)
        wide = torch.from_numpy(np.atleast_1d(np.ascontiguousarray(source.data)))
        bits = wide.to(torch.bfloat16).view(torch.uint16).numpy().reshape(source.data.shape)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    interpreter.InterpreterBuilder.cast_impl = cast
    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot = dot


def _hasten() -> None:
    """What the interpreter looks for anew at every call of a function and every operation, found
    once: it takes half the time."""
    is_builtin, patch_attr = tl.core.is_builtin, interpreter._patch_attr
    np_dtype = interpreter._get_np_dtype
    packages = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
    builtins = {
        each: [name for name, member in inspect.getmembers(each) if is_builtin(member)]
        for each in packages
    }

    def patch_builtin(package: Any, *rest: Any) -> None:
        names = builtins[package]
        if not is_builtin(getattr(package, names[0])):
            return  # by the function that called this one, until that ends
        for name in names:
            patch_attr(package, name, getattr(package, name), *rest)

    @cache
    def np_dtype_of(scalar: Any) -> Any:
        return np_dtype(scalar)

    def cached(dtype: Any) -> Any:
        return np_dtype(dtype) if dtype.scalar.is_ptr() else np_dtype_of(dtype.scalar)

    interpreter._patch_builtin = patch_builtin
    interpreter._get_np_dtype = cached
    # Shapes here are too small for any sum of integers to overflow.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def _intern_shapes() -> None:
    """Every result of every operation is a tensor with a type, and both check and wrap their shape
    again: the same few shapes, found once."""
    block_type = tl.block_type
    checked = block_type.__init__

    @cache
    def sizes(shape: tuple[int, ...]) -> Any:
        """The shape as types have it, its number of elements, and both as tensors have them."""
        if not shape:
            return None, 1, tl.tuple([]), tl.constexpr(1)
        block = block_type.__new__(block_type)
        checked(block, tl.int1, list(shape))
        of_tensor = tl.tuple([tl.constexpr(each) for each in shape])
        return block.shape, block.numel, of_tensor, tl.constexpr(block.numel)

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        values = tuple([getattr(each, "value", each) for each in shape])
        if not values:
            checked(self, element_ty, shape)
        self.element_ty = element_ty
        self.shape, self.numel, *self.of_tensor = sizes(values)

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tensor if type.is_block() else sizes(())[2:]

    block_type.__init__ = init_type
    names = property(lambda self: f"<{self.shape}, {self.element_ty}>", lambda self, name: None)
    block_type.name = names  # made when it is read
    tl.tensor.__init__ = init_tensor


if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    _repair()
    _hasten()
    _intern_shapes()
