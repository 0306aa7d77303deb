"""The engine in bfloat16 against transformers and peft in float32: on a GPU at the widths of Llama
3 8B, where kernels, their tiles and CUDA graphs do what they do in service; on CPU at small widths,
so that the test itself is tested."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.helpers.engine import Rig
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
LENGTHS = (1, 17, 130, 250)
NEW_TOKENS = 12
MAX_ERROR = 0.08  # of the logits' norm; bfloat16 rounds to 1 in 256, in every layer again
LEAST_DIFFERENCE = 0.4  # between the logits of two adapters, or nothing would be proven


@pytest.mark.parametrize(
    ("device", "widths"),
    [("cpu", SMALL), pytest.param("cuda", LLAMA_3_8B, marks=pytest.mark.gpu)],
)
def test_bfloat16_is_near_float32(device: str, widths: dict[str, int], tmp_path: Path) -> None:
    size = widths["hidden_size"] ** -0.5
    model = make_model("llama", initializer_range=size, max_position_embeddings=512, **widths)
    model = model.bfloat16().float()  # both compute with the same weights
    model_dir = save_model(model, tmp_path / "model")
    paths = [tmp_path / f"adapter{index}" for index in range(len(ADAPTERS))]
    for index, (targets, rank) in enumerate(ADAPTERS):
        model = add_adapter(
            model, paths[index].name, paths[index], rank=rank, target_modules=TARGETS[targets],
            seed=index, size=0.7 * size,
        )  # fmt: skip
    assert isinstance(model, PeftModel)
    model.to(device)

    rig = Rig(model_dir, num_pages=2000, page_tokens=16, device=device, dtype=torch.bfloat16)
    generator = random.Random(4)
    used = [None, *paths, None, *paths[:2]]
    prompts: list[list[int]] = []
    for handle, path in enumerate(used):
        length = LENGTHS[handle % len(LENGTHS)]
        prompts.append([generator.randrange(3, widths["vocab_size"]) for _ in range(length)])
        rig.submit(handle, prompts[handle], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()

    assert not rig.failed
    for handle, path in enumerate(used):
        tokens = rig.tokens[handle]
        assert len(tokens) == NEW_TOKENS
        ids = [*prompts[handle], *tokens[:-1]]
        expected = _logits(model, path, ids, device)[-NEW_TOKENS:]
        other = _logits(model, paths[handle % 2] if path is None else None, ids, device)
        actual = torch.stack(rig.logits[handle])
        assert _distance(actual, expected) <= MAX_ERROR, path
        assert _distance(other[-NEW_TOKENS:], expected) >= LEAST_DIFFERENCE, path


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.no_grad()
def _logits(model: PeftModel, adapter: Path | None, ids: list[int], device: str) -> torch.Tensor:
    """[len(ids), vocab] float32 on the host: the next-token logits after each prefix."""
    tokens = torch.tensor([ids], device=device)
    if adapter is None:
        with model.disable_adapter():
            return model(input_ids=tokens).logits[0].cpu()
    model.set_adapter(adapter.name)
    return model(input_ids=tokens).logits[0].cpu()
