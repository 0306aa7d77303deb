"""Engines over quantised checkpoints, against transformers + peft with the dequantised weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.dataplane.engine.test_parity import TOLERANCE, reference_logits
from tests.helpers.engine import Rig
from tests.helpers.models import TARGETS, TARGETS_OF, VOCAB, add_adapter
from tests.helpers.quantized import quantized_model

NEW_TOKENS = 12


@pytest.mark.parametrize(
    ("form", "architecture"),
    [
        ("nf4", "llama"),
        ("fp4", "llama"),  # whose head is quantised
        ("gptq-4", "qwen2"),  # with biases, and a tied head
        ("packed-4", "phi3"),  # whose projections are fused in the checkpoint
        ("fp8", "qwen3"),
        ("nf4", "phi"),  # whose modules have other names, and biases
        ("gptq-4", "glm"),
    ],
)
def test_mixed_batch_equals_peft_over_dequantised_weights(
    form: str, architecture: str, tmp_path: Path
) -> None:
    changes = {"head_dim": 16} if architecture == "qwen3" else {}
    model = quantized_model(form, tmp_path / "model", architecture, **changes)
    targets = TARGETS_OF.get(architecture, TARGETS)
    names = ["all-linear", "with-head"] if architecture != "qwen2" else ["all-linear", "qv"]
    paths: list[Path | None] = [None]
    for index, name in enumerate(names):
        path = tmp_path / f"adapter{index}"
        model = add_adapter(
            model,
            path.name,
            path,
            rank=4,
            target_modules=targets[name],
            seed=index,
            use_dora=bool(index),
        )
        paths.append(path)
    rig = Rig(tmp_path / "model")
    generator = random.Random(1)
    prompts = [[generator.randrange(3, VOCAB) for _ in range(9 + 8 * n)] for n in range(len(paths))]
    for handle, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        rig.submit(handle, prompt, path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    assert not rig.failed
    for handle, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        tokens = rig.tokens[handle]
        expected = reference_logits(model, path, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        assert expected.argmax(-1).tolist() == tokens
        actual = torch.stack(rig.logits[handle])
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
