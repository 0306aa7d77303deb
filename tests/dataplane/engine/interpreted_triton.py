"""The engine on a GPU's path, with interpreted kernels: see tests/kernels/interpreter.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.lora import triton_affine, triton_expand, triton_shrink
from tests.helpers.engine import Rig
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

        def counting(*args: object) -> object:
            launched[name] = launched.get(name, 0) + 1
            return run(*args)

        monkeypatch.setattr(module, name, counting)

    count(triton_shrink, "shrink")
    count(triton_expand, "expand")
    count(triton_affine, "affine")
    return launched
