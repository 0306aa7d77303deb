"""Mixtures of experts in the engine: on CPU, in bfloat16, an answer has the same bits whatever
else is computed; and what is refused of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.linear.cpu import is_best
from storage.adapter.manifest import parse_adapter
from storage.errors import UnsupportedFeatureError
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, add_adapter, make_model, save_model

PROMPT = [3 + (7 * at) % 120 for at in range(21)]
SAMPLING = {"max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    changes = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = make_model("qwen2-moe", **changes)
    paths = {"model": save_model(model, root / "model"), "a": root / "a"}
    targets = [*ATTENTION, "shared_expert.gate_proj", "shared_expert.down_proj"]
    parameters = ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"]
    add_adapter(
        *(model, "a", paths["a"]),
        rank=8,
        target_modules=targets,
        target_parameters=parameters,
        rank_pattern={r"experts\.(gate_up|down)_proj": 3},
        seed=1,
    )
    return paths


@pytest.mark.skipif(not is_best(), reason="products are a library's here")
def test_an_answer_has_the_same_bits_whatever_happens(assets: dict[str, Path]) -> None:
    def rig(**options: int) -> Rig:
        return Rig(assets["model"], dtype=torch.bfloat16, **options)  # type: ignore[arg-type]

    alone = rig()
    experts = [layer.experts for layer in alone.engine._decoder.weights.layers]
    assert [each is not None and each.panels is not None for each in experts] == [False, True] * 2
    alone.submit(0, PROMPT, assets["a"], **SAMPLING)
    alone.run()
    tokens, logits = alone.tokens[0], alone.logits[0]

    def check(made: Rig, handle: int) -> None:
        assert made.tokens[handle] == tokens
        assert all(map(torch.equal, made.logits[handle], logits))

    chunks = rig(max_batch_tokens=8, max_running=8)
    chunks.submit(1, PROMPT, assets["a"], **SAMPLING)
    chunks.run()
    check(chunks, 1)
    crowded = rig(num_pages=29)
    for handle in range(6):
        crowded.submit(handle, PROMPT, assets["a"] if handle % 2 else None, **SAMPLING)
    crowded.run()
    assert crowded.engine.stats().num_preemptions > 0
    assert all(crowded.tokens[handle] == tokens for handle in (1, 3, 5))
    cached = rig()
    for handle in (1, 2):
        cached.submit(handle, PROMPT, assets["a"], **SAMPLING)
        cached.run()
        check(cached, handle)
    assert cached.engine.stats().num_prefix_hit_tokens > 0
    drafted = rig(num_pages=200, speculative_tokens=3)
    force_drafts(drafted, {1: tokens})
    drafted.submit(1, PROMPT, assets["a"], **SAMPLING)
    drafted.run()
    assert drafted.engine.stats().num_accepted_tokens > 0
    check(drafted, 1)


def test_lora_on_the_shared_experts_gate_is_refused_by_name(tmp_path: Path) -> None:
    """As the installed peft writes it."""
    path = tmp_path / "a"
    model = make_model("qwen2-moe")
    add_adapter(model, "a", path, rank=4, seed=1, target_modules="all-linear")
    with pytest.raises(UnsupportedFeatureError, match="shared_expert_gate"):
        parse_adapter(
            (path / "adapter_config.json").read_bytes(),
            (path / "adapter_model.safetensors").read_bytes(),
        )
