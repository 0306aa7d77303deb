"""The engine on a GPU's path, with interpreted kernels: see tests/kernels/interpreter.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graph_setup import GraphSetup
from dataplane.engine.warm_up import warm_up
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Decoder
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from kernels.lora import triton_affine, triton_expand, triton_shrink
from tests.helpers.engine import Rig
from tests.helpers.graphs import Recorder
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

ADAPTERS = [("with-head", 8, {"use_dora": True}), ("qv", 3, {})]


def test_mixed_adapters_equal_the_cpu_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"num_hidden_layers": 2, "vocab_size": 101}  # an odd head: nothing is aligned
    model_dir = save_model(make_model("llama", **changes), tmp_path / "model")
    paths: list[Path | None] = [None]
    for index, (targets, rank, config) in enumerate(ADAPTERS):
        path = tmp_path / f"adapter{index}"
        model = make_model("llama", **changes)
        add_adapter(
            model, path.name, path, rank=rank, target_modules=TARGETS[targets], seed=index, **config
        )
        paths.append(path)
    launched = _count_launches(monkeypatch)
    interpreted = _logits(model_dir, paths)
    assert all(launched.values()), launched
    monkeypatch.delenv("TRITON_INTERPRET")
    launched.clear()
    expected = _logits(model_dir, paths)
    assert not launched
    for handle, rows in expected.items():
        torch.testing.assert_close(
            torch.stack(interpreted[handle]), torch.stack(rows), rtol=1e-4, atol=1e-4
        )


def _logits(model_dir: Path, paths: list[Path | None]) -> dict[int, list[torch.Tensor]]:
    rig = Rig(model_dir, num_pages=96, page_tokens=8)
    for handle, path in enumerate(paths):
        prompt = [3 + handle, 5, 7, 11][: 4 - handle % 3]
        rig.submit(handle, prompt, path, max_tokens=2, ignore_eos=True)
    rig.run()
    return rig.logits


def _count_launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    launched = {"shrink": 0, "expand": 0, "affine": 0}

    def count(module: ModuleType, name: str) -> None:
        run = getattr(module, name)

        def counting(*args: object, **named: object) -> object:
            launched[name] = launched.get(name, 0) + 1
            return run(*args, **named)

        monkeypatch.setattr(module, name, counting)

    count(triton_shrink, "shrink")
    count(triton_expand, "expand")
    count(triton_affine, "affine")
    return launched


class LateStream:
    """A second stream that does its work as late as it may; what comes afterwards, too, or at
    once."""

    def __init__(self, *, is_eager: bool) -> None:
        self.forked: list[Callable[[], object]] = []
        self.num_joined = self.num_finished = 0
        self._is_eager = is_eager
        self._afterwards: list[Callable[[], object]] = []

    def fork(self, work: Callable[[], object], afterwards: Callable[[], object]) -> None:
        assert not self.forked
        self._catch_up()
        self.forked.append(work)
        self._afterwards.append(afterwards)

    def join(self) -> None:
        self.forked.pop()()
        self.num_joined += 1
        if self._is_eager:
            self._catch_up()

    def finish(self) -> None:
        self._catch_up()
        self.num_finished += 1

    def _catch_up(self) -> None:
        while self._afterwards:
            self._afterwards.pop()()


@pytest.mark.parametrize("is_eager", [False, True])
def test_replayed_steps_and_a_second_stream_give_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_eager: bool
) -> None:
    """Adapters are read from the static buffers, by grids that are larger than the steps."""
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 48}
    model_dir = save_model(make_model("llama", **shape), tmp_path / "model")
    paths = [tmp_path / name for name in "ab"]
    for index, (path, rank) in enumerate(zip(paths, (8, 3), strict=True)):
        model = make_model("llama", **shape)
        targets = TARGETS[("all-linear", "qv")[index]]
        add_adapter(model, path.name, path, rank=rank, target_modules=targets, seed=index)

    def run(graphs: GraphSetup | None) -> Rig:
        rig = Rig(model_dir, num_pages=64, page_tokens=8, max_context=32, graphs=graphs)
        for handle, path in enumerate([*paths, None]):
            prompt = [3 + handle, 5, 7]
            rig.submit(handle, prompt, path, max_tokens=5 - handle, ignore_eos=True)
        rig.run()
        return rig

    expected = run(None).tokens
    late = LateStream(is_eager=is_eager)
    made = Decoder.__init__

    def with_stream(self: Decoder, *arguments: Any) -> None:
        made(self, *arguments[:3], late)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Decoder, "__init__", with_stream)
    recorder = Recorder()
    launched = _count_launches(monkeypatch)
    rig = run(recorder.setup(GraphBuckets((1, 4), (4,), (24,))))
    assert rig.tokens == expected
    assert rig.engine.stats().num_graph_steps == recorder.num_replayed == 4
    assert late.num_joined > late.num_finished > 0 and not late.forked
    assert launched["expand"] >= late.num_joined


def test_warming_up_beside_adapters_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = save_model(make_model("llama", hidden_size=32, vocab_size=48), tmp_path / "model")
    config, cpu = load_config(model_dir), torch.device("cpu")
    pool = PagePool(config, page_tokens=8, num_pages=2, dtype=torch.float32, device=cpu)
    late: Any = LateStream(is_eager=False)
    launched = _count_launches(monkeypatch)
    warm_up(Decoder(config, load_weights(model_dir, config, torch.float32, cpu), 32, late), pool)
    assert launched["shrink"] == launched["expand"] == late.num_joined == 4 * config.num_layers
    assert late.num_finished == 1 and not bool(pool.data.any())
