"""Importing vLLM's Triton LoRA kernels from a folder, without the rest of vLLM.

The folder holds `vllm/lora/ops/triton_ops` and `vllm/envs.py`, from a checkout or an unpacked wheel
of any device. These run as they are. What they import besides (logging, what platform it is,
registration with torch) has stand-ins here that change nothing of what is launched; anything else
that a version may ask for is a stand-in that is false and does nothing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from benchmarks.errors import PeerError

_OPS = "vllm.lora.ops.triton_ops"
_PACKAGES = ("vllm", "vllm.lora", "vllm.lora.ops", _OPS)  # their __init__ would bring all of vLLM


class PeerOps(NamedTuple):
    """lora_shrink(x, [a of each slice], hidden, *meta, scaling); lora_expand(hidden, [b of each
    slice], y, *meta, add_inputs=True); kernel_meta: LoRAKernelMeta, which makes `meta`."""

    lora_shrink: Callable[..., None]
    lora_expand: Callable[..., None]
    kernel_meta: Any
    forget: Callable[[], None]
    """Of tensors that there were: it remembers shapes by address, and these come again."""


def import_peer(folder: Path) -> PeerOps:
    """Raises: PeerError when the folder has no such kernels, or they cannot be imported."""
    if not (folder / _OPS.replace(".", "/") / "lora_shrink_op.py").is_file():
        raise PeerError(
            "PEER_MISSING", f"--peer-lora {folder}: there is no {_OPS.replace('.', '/')} in it"
        )
    if "vllm" in sys.modules:
        raise PeerError("PEER_IMPORTED", "vllm is imported in this process already")
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    try:
        shrink, expand, metadata, utils = (
            importlib.import_module(f"{_OPS}.{name}")
            for name in ("lora_shrink_op", "lora_expand_op", "lora_kernel_metadata", "utils")
        )
        tables = [each for name, each in vars(utils).items() if name.endswith("_PTR_DICT")]

        def forget() -> None:
            for table in tables:
                table.clear()

        return PeerOps(
            shrink.lora_shrink,
            expand.lora_expand,
            metadata.LoRAKernelMeta,
            forget,
        )
    except Exception as error:
        raise PeerError(
            "PEER_UNUSABLE", f"--peer-lora {folder}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "vllm":
            return None
        file = self._folder.joinpath(*fullname.split(".")).with_suffix(".py")
        own = fullname.startswith(f"{_OPS}.") or fullname == "vllm.envs"
        if own and file.is_file():
            return importlib.util.spec_from_file_location(fullname, file)
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name) if spec.name in _PACKAGES else _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        for name, value in _known().get(module.__name__, {}).items():
            setattr(module, name, value)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Nothing:
    """False, and whatever is asked of it is nothing, too."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: object, **options: object) -> _Nothing:
        return self


class _Platform(_Nothing):
    def is_cuda(self) -> bool:
        return torch.cuda.is_available() and torch.version.hip is None

    def has_device_capability(self, capability: int) -> bool:
        major, minor = torch.cuda.get_device_capability()
        return self.is_cuda() and 10 * major + minor >= capability


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def info_once(self, message: str, *arguments: object, **_: object) -> None:
        self.info(message, *arguments)

    warning_once = debug_once = info_once


def _known() -> dict[str, dict[str, Any]]:
    def to_device(
        data: Any, device: Any = None, dtype: Any = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        made = torch.as_tensor(data, dtype=dtype)
        return made.to(device) if out is None else out.copy_(made)

    def not_registered(*_: object, **__: object) -> None:
        raise AttributeError("plain functions are called instead")

    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        raise PeerError("PEER_UNUSABLE", "Triton is not there") from error

    return {
        "vllm.triton_utils": {"triton": triton, "tl": tl, "HAS_TRITON": True},
        "vllm.logger": {"init_logger": lambda name: _Logger(logging.getLogger(name))},
        "vllm.platforms": {"current_platform": _Platform()},
        "vllm.utils": {"direct_register_custom_op": not_registered},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.torch_utils": {
            "direct_register_custom_op": not_registered,
            "async_tensor_h2d": to_device,
        },
    }
