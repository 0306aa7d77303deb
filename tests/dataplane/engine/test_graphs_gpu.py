"""Real graphs on a real device: the same tokens as eager steps, with a second stream or without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataplane.engine.graph_setup import graph_setup
from dataplane.engine_options import EngineOptions
from tests.helpers.engine import Rig
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("lora_stream", [False, True])
def test_replayed_steps_give_the_tokens_of_eager_ones(tmp_path: Path, lora_stream: bool) -> None:
    model_dir = save_model(make_model("llama"), tmp_path / "model")
    adapters = {"a": ("all-linear", 16), "b": ("qv", 5), "c": ("attention", 40)}
    paths: dict[str, Path | None] = {"": None}
    for index, (name, (targets, rank)) in enumerate(adapters.items()):
        path = paths[name] = tmp_path / name
        model = make_model("llama")
        add_adapter(model, name, path, rank=rank, target_modules=TARGETS[targets], seed=index)
    device = torch.device("cuda")
    options = EngineOptions(model_dir="", model_name="", page_tokens=16, max_running=12)
    rigs = [
        Rig(
            model_dir,
            page_tokens=16,
            max_running=12,
            device="cuda",
            graphs=graph_setup(options, device, 256) if captured else None,
            lora_stream=lora_stream and captured,
        )
        for captured in (False, True)
    ]
    for rig in rigs:
        for handle in range(20):
            prompt = [3 + (handle * 7 + at) % 120 for at in range(3 + handle)]
            rig.submit(
                handle,
                prompt,
                paths["_abc"[handle % 4].strip("_")],
                max_tokens=6 + 3 * (handle % 5),
                ignore_eos=True,
                temperature=0.7 * (handle % 2),
                top_p=0.9,
                seed=handle,
            )
        rig.run()
    eager, replayed = rigs
    assert replayed.tokens == eager.tokens
    graphs = replayed.engine.graphs
    assert graphs is not None and eager.engine.graphs is None
    assert graphs.num_steps > 10 and not graphs.report.num_left_out
    # What memory they took is not asked: other tests on the device free theirs meanwhile.
    assert graphs.report.num_graphs > 0 and graphs.report.capture_s > 0.0
