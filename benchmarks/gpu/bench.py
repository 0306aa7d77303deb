"""What the parts share: device, models, budget, and the product's engine around them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from benchmarks import session, step_loop
from benchmarks.gpu.adapters import WindowLoader, Windows
from benchmarks.gpu.model import RandomModel
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import device_name, measure_on, rates
from benchmarks.session import Session
from benchmarks.step_loop import StepLoop
from dataplane.engine import setup
from dataplane.engine_options import EngineOptions
from dataplane.models.config import ModelConfig
from dataplane.parallel.shard import Shard

_CPU_POOL_BYTES = 32 << 20
_MAX_BATCH_TOKENS = 4096  # so that prompts are through in a few steps
_RATE_ROUNDS = 5

_L = TypeVar("_L", Session, StepLoop)


class Bench:
    """One process's run. peer: folder with another project's LoRA kernels, if there is one."""

    def __init__(
        self,
        scale: Scale,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        budget: Budget,
        *,
        peer: Path | None = None,
    ) -> None:
        self.scale = scale
        self.device = device
        self.dtype = dtype
        self.folder = folder
        self.budget = budget
        self.peer = peer
        self._model: tuple[str, RandomModel] | None = None
        self._num_folders = 0

    @property
    def device_name(self) -> str:
        return device_name(self.device)

    @cached_property
    def copy_bytes_per_s(self) -> float:
        """The measured bandwidth of the device's memory, reads and writes both counted."""
        return rates(self.device, self.dtype, measure_on(self.device, _RATE_ROUNDS))[0]

    def within(self, seconds: float) -> float:
        """How long a part's rounds may take, where they take so many seconds at full scale."""
        return min(seconds * self.scale.share, self.budget.left_s)

    def model(self, name: str) -> RandomModel:
        """The last one asked for is kept, and no other: two do not fit beside a pool."""
        if self._model is None or self._model[0] != name:
            self._model = None
            torch.cuda.empty_cache()
            shape = self.scale.models[name]
            model = RandomModel(self.new_folder(), shape, self.dtype, self.device)
            self._model = (name, model)
        return self._model[1]

    def new_folder(self) -> Path:
        """A path where nothing is yet."""
        self._num_folders += 1
        return self.folder / str(self._num_folders)

    @contextmanager
    def engine(
        self,
        kind: Callable[..., _L],
        model: RandomModel,
        windows: Windows | None,
        *,
        max_running: int,
        keywords: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[_L]:
        """The product's engine over random weights, as a Session or a StepLoop. windows: its
        adapters; None where they come through the product's own tiers. options: of EngineOptions.
        keywords: of build_engine.
        """
        pool_bytes = _CPU_POOL_BYTES if self.device.type == "cpu" else 0
        settings = {
            "model_dir": str(model.folder),
            "model_name": "bench",
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "pool_bytes": pool_bytes,
            "max_running": max_running,
            "max_batch_tokens": max(_MAX_BATCH_TOKENS, max_running),
            **options,
        }
        with _made_here(model, windows, keywords or {}):
            loop = kind(EngineOptions(**settings), vocab_size=model.shape.vocab_size)
        # As an engine's process does: a full collection would hold up a step.
        gc.collect()
        gc.freeze()
        try:
            yield loop
        finally:
            loop.stop()
            gc.unfreeze()  # what is left of it is to be found then


@contextmanager
def _made_here(
    model: RandomModel, windows: Windows | None, keywords: Mapping[str, Any]
) -> Iterator[None]:
    """While an engine is built, weights come from `model`, and adapters from `windows`, and
    build_engine has further `keywords`."""

    def weights(
        path: Path,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard | None,
    ) -> object:
        assert shard is None, "one rank"
        assert path == model.folder and dtype == model.dtype and device.type == model.device.type
        return model.weights()

    def loader(build: Any, **rest: Any) -> WindowLoader:
        assert windows is not None
        return WindowLoader(windows, build, rest["on_result"])

    build = partial(setup.build_engine, **keywords)
    with ExitStack() as stack:
        for place in (session, step_loop):
            stack.enter_context(mock.patch.object(place, "build_engine", build))
        stack.enter_context(mock.patch.object(setup, "load_weights", weights))
        if windows is not None:
            stack.enter_context(mock.patch.object(setup, "ThreadedLoader", loader))
        yield
