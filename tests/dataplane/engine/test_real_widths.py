"""The engine in bfloat16 against transformers and peft in float32: on a GPU at the widths of Llama
3 8B, where kernels, their tiles and CUDA graphs do what they do in service; on CPU at small widths,
so that the test itself is tested."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel

from dataplane.engine.cuda_graphs import cuda_capture
from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graph_setup import GraphSetup
from tests.helpers.engine import Rig
from tests.helpers.graphs import Recorder
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

SMALL = {"hidden_size": 64, "intermediate_size": 112, "vocab_size": 128}
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 8192,
}
ADAPTERS = [("all-linear", 16), ("attention", 33), ("all-linear", 64), ("mlp", 8), ("with-head", 4)]
CONTEXT = 512
PAGE_TOKENS = 16
LENGTHS = (1, 17, 130, 250)
NEW_TOKENS = 12
MAX_ERROR = 0.04  # of the logits' norm; bfloat16 rounds to 1 in 256, in every layer again
MAX_GAP = 0.5  # of a chosen token's logit to the best one, in their standard deviations
LEAST_DIFFERENCE = 0.4  # between the logits of two adapters, or nothing would be proven


class Assets(NamedTuple):
    model_dir: Path
    reference: PeftModel
    adapters: list[Path]
    vocab_size: int
    device: str


@pytest.fixture(
    scope="module",
    params=[("cpu", SMALL), pytest.param(("cuda", LLAMA_3_8B), marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)
def assets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Assets:
    device, widths = request.param
    root = tmp_path_factory.mktemp("assets")
    size = widths["hidden_size"] ** -0.5
    model = make_model("llama", initializer_range=size, max_position_embeddings=CONTEXT, **widths)
    for each in model.parameters():  # so that both compute with the same weights
        each.data = each.data.bfloat16().float()
    model_dir = save_model(model, root / "model")
    paths = [root / f"adapter{index}" for index in range(len(ADAPTERS))]
    for index, (targets, rank) in enumerate(ADAPTERS):
        model = add_adapter(
            model, paths[index].name, paths[index], rank=rank, target_modules=TARGETS[targets],
            seed=index, size=0.7 * size,
        )  # fmt: skip
    assert isinstance(model, PeftModel)
    return Assets(model_dir, model.to(device), paths, widths["vocab_size"], device)


def test_logits_are_near_those_of_float32(assets: Assets) -> None:
    rig, used, prompts = _served(assets, assets.adapters, graphs=None)
    for handle, path in enumerate(used):
        ids = [*prompts[handle], *rig.tokens[handle][:-1]]
        expected = _logits(assets, path, ids)
        other = _logits(assets, assets.adapters[handle % 2] if path is None else None, ids)
        assert _distance(torch.stack(rig.logits[handle]), expected) <= MAX_ERROR, path
        assert _distance(other, expected) >= LEAST_DIFFERENCE, path


def test_steps_that_are_replayed_choose_what_float32_would(assets: Assets) -> None:
    buckets = GraphBuckets.of(64, CONTEXT, PAGE_TOKENS, 96)
    if assets.device == "cuda":
        setup = GraphSetup(buckets, cuda_capture(torch.device("cuda")))
    else:
        few = GraphBuckets((4, 16), buckets.num_blocks, buckets.ranks, (48,), buckets.num_blocks[0])
        setup = Recorder().setup(few)
    # Adapters of lm_head run eagerly, and so would all that run beside it.
    rig, used, prompts = _served(assets, assets.adapters[:-1], graphs=setup)
    assert rig.engine.stats().num_graph_steps >= NEW_TOKENS // 2
    for handle, path in enumerate(used):
        tokens = rig.tokens[handle]
        expected = _logits(assets, path, [*prompts[handle], *tokens[:-1]])
        chosen = expected.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        gaps = (expected.max(1).values - chosen) / expected.std(1)
        assert float(gaps.max()) <= MAX_GAP, path


def _served(
    assets: Assets, adapters: list[Path], graphs: GraphSetup | None
) -> tuple[Rig, list[Path | None], list[list[int]]]:
    """One batch, base-only and adapters mixed, one of them twice; adapter and prompt by handle."""
    rig = Rig(
        assets.model_dir, num_pages=2000, page_tokens=PAGE_TOKENS, device=assets.device,
        dtype=torch.bfloat16, graphs=graphs,
    )  # fmt: skip
    generator = random.Random(4)
    used = [None, *adapters, None, adapters[0]]
    prompts: list[list[int]] = []
    for handle, path in enumerate(used):
        length = LENGTHS[handle % len(LENGTHS)]
        prompts.append([generator.randrange(3, assets.vocab_size) for _ in range(length)])
        rig.submit(handle, prompts[handle], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    assert not rig.failed
    assert all(len(rig.tokens[handle]) == NEW_TOKENS for handle in range(len(used)))
    return rig, used, prompts


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.no_grad()
def _logits(assets: Assets, adapter: Path | None, ids: list[int]) -> torch.Tensor:
    """[NEW_TOKENS, vocab] float32 on the host: those after the last prefixes of `ids`."""
    model, tokens = assets.reference, torch.tensor([ids], device=assets.device)
    if adapter is None:
        with model.disable_adapter():
            return model(input_ids=tokens).logits[0, -NEW_TOKENS:].cpu()
    model.set_adapter(adapter.name)
    return model(input_ids=tokens).logits[0, -NEW_TOKENS:].cpu()
