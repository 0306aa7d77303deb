"""A GPU that is not there: what the host does for one, step by step, on tensors in host memory."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)


_PAGEABLE = ("tensor", "as_tensor", "asarray")
_TENSOR: Any = torch.Tensor
_PROPERTIES = {
    _TENSOR.device.__get__: CUDA,
    _TENSOR.is_cuda.__get__: True,
    _TENSOR.is_cpu.__get__: False,
}


class StandInGpu(TorchFunctionMode):
    """While it is on, all tensors say that they are on a GPU, and lie in host memory. What torch
    refuses for one, or waits for, is refused here as far as it is known below. Kernels must run in
    Triton's interpreter. is_serving: also what is too slow for a step, but not for a start."""

    is_serving = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in _PROPERTIES:
            return _PROPERTIES[func]
        name = func.__name__
        if name == "pin_memory":
            return args[0].clone()
        if options.pop("pin_memory", False) and func is torch.tensor:
            assert not isinstance(args[0], np.ndarray), "torch pins no tensor made of an array"
        if name == "__setitem__" and _has_tensor(args[1]):
            assert isinstance(args[2], torch.Tensor), "the host would wait for the number's copy"
        if _is_gpu(options.get("device")):
            assert not self.is_serving or name not in _PAGEABLE, "the host would wait for the copy"
            options["device"] = "cpu"
        if name == "to":
            args = tuple("cpu" if _is_gpu(each) else each for each in args)
            options["copy"] = True
        return func(*args, **options)


class _Stream:
    def __init__(self, device: object = CUDA) -> None:
        self.device = device

    def wait_stream(self, other: object) -> None:
        assert isinstance(other, _Stream)

    def wait_event(self, event: object) -> None:
        assert isinstance(event, _Event) and event.is_recorded


class _Event:
    is_recorded = False

    def __init__(self, *, enable_timing: bool = False) -> None:
        self._enable_timing = enable_timing

    def record(self, stream: object = None) -> None:
        self.is_recorded = True

    def query(self) -> bool:
        assert self.is_recorded
        return True

    def synchronize(self) -> None:
        assert self.is_recorded

    def elapsed_time(self, other: _Event) -> float:
        assert self._enable_timing and other._enable_timing
        return 1.0


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Replaces of torch.cuda what engines use."""
    main = _Stream()
    stand_ins: dict[str, Any] = {
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda device=None: main,
        "get_device_properties": lambda device: SimpleNamespace(major=9, minor=0),
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(torch.cuda, name, stand_in)


def _is_gpu(value: object) -> bool:
    return value == "cuda" or (isinstance(value, torch.device) and value.type == "cuda")


def _has_tensor(index: object) -> bool:
    return any(isinstance(each, torch.Tensor) for each in _parts(index))


def _parts(index: object) -> tuple[object, ...]:
    return index if isinstance(index, tuple) else (index,)
