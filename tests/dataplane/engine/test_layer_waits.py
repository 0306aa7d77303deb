"""A cold request's first forward pass waits for its adapter layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.lora.copier import CpuCopy, PoolCopier
from tests.helpers.engine import Rig
from tests.helpers.models import add_adapter, make_model, save_model

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    model = make_model("llama")
    paths = {"model": save_model(model, root / "model"), "a": root / "a"}
    add_adapter(model, "a", paths["a"], rank=32, target_modules=["q_proj", "lm_head"], seed=1)
    return paths


def test_the_forward_pass_copies_what_is_missing(
    assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None ahead: whatever the batch reads was waited for."""
    warm = Rig(assets["model"])
    warm.pool.data.fill_(float("nan"))
    warm.submit(1, PROMPT, assets["a"])
    warm.run()

    # Nothing between steps, or it depends on the threads who copies a page.
    monkeypatch.setattr(PoolCopier, "advance", lambda self, budget_s: None)
    monkeypatch.setattr(CpuCopy, "num_layers_in", property(lambda self: self._layer + 1))
    cold = Rig(assets["model"])
    cold.pool.data.fill_(float("nan"))
    waited: list[tuple[int, int]] = []
    wait = CpuCopy.wait

    def noting(self: CpuCopy, layer: int) -> None:
        before = self.remaining_bytes
        wait(self, layer)
        waited.append((layer, before - self.remaining_bytes))

    monkeypatch.setattr(CpuCopy, "wait", noting)
    cold.submit(1, PROMPT, assets["a"])
    cold.run()
    assert not cold.failed
    assert cold.tokens == warm.tokens
    # The step behind it was built while the adapter was still on its way: it may ask again.
    num_layers = len(cold.engine._decoder.weights.layers)
    assert [layer for layer, _ in waited[:num_layers]] == list(range(num_layers))
    assert all(copied > 0 for _, copied in waited[:num_layers]), "each was still on its way"
    assert not any(copied for _, copied in waited[num_layers:])


def test_a_batch_with_all_adapters_in_waits_for_nothing(assets: dict[str, Path]) -> None:
    rig = Rig(assets["model"])
    waits: list[object] = []
    build = rig.engine._batches.build

    def noting(chunks):
        batch = build(chunks)
        waits.append(batch.wait)
        return batch

    rig.engine._batches.build = noting  # pyright: ignore[reportAttributeAccessIssue]
    rig.submit(1, PROMPT, assets["a"], max_tokens=3)
    rig.run()
    assert waits == [None] * 3
