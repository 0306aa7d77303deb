"""The whole decoder on Triton's kernels, interpreted, against itself on the torch twins: see
tests/kernels/interpreter.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from dataplane.models.config_json import load_config
from dataplane.models.decoder import Batch, Decoder
from dataplane.models.weights import load_weights
from dataplane.pool.pool import PagePool
from kernels.attention import op as attention_op
from kernels.attention.metadata import Queries, attention_metadata
from kernels.fused import op as fused_op
from kernels.kv import op as kv_op
from tests.helpers.models import make_model, save_model

OPS: tuple[ModuleType, ...] = (attention_op, fused_op, kv_op)
PAGE_TOKENS = 8
CPU = torch.device("cpu")
TABLES = ([3, 1, 5], [2])
# (sequence, tokens that are in the cache, tokens of this step)
STEPS = [[(0, 0, range(1, 18)), (1, 0, range(7, 10))], [(0, 17, [5]), (1, 3, [4, 6])]]


def logits_of(model_dir: Path) -> list[torch.Tensor]:
    """Of every step: a prefill of two prompts, then a decode beside a chunk of a prompt."""
    config = load_config(model_dir)
    pool = PagePool(config, page_tokens=PAGE_TOKENS, num_pages=9, dtype=torch.float32, device=CPU)
    decoder = Decoder(config, load_weights(model_dir, config, torch.float32, CPU), 64)
    logits: list[torch.Tensor] = []
    for step in STEPS:
        tokens: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        queries: list[Queries] = []
        for sequence, cached, new in step:
            start, seq_len, table = len(tokens), cached + len(new), TABLES[sequence]
            tokens += new
            positions += range(cached, seq_len)
            pages += [table[at // PAGE_TOKENS] for at in range(cached, seq_len)]
            blocks = table[: pool.blocks_for(seq_len)]
            queries.append(Queries(start, len(tokens), seq_len, blocks))
        batch = Batch(
            token_ids=torch.tensor(tokens),
            positions=torch.tensor(positions),
            page_index=torch.tensor(pages),
            page_offset=torch.tensor(positions) % PAGE_TOKENS,
            attention=attention_metadata(queries, CPU),
            layers=[{}] * config.num_layers,
            affine=(),
            logit_rows=torch.tensor([query.end - 1 for query in queries]),
            lm_head=(),
        )
        logits.append(decoder.forward(batch, pool.data, PAGE_TOKENS))
    return logits


# Soft-caps; whole norms; windows; layers in parallel, neighbours' rope; no gate, a head with bias.
@pytest.mark.parametrize("architecture", ["gemma2", "olmo3", "cohere", "phi"])
def test_decoder_equals_its_twin(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = save_model(make_model(architecture), tmp_path / "model")
    by_triton = logits_of(model_dir)
    for op in OPS:
        assert op.uses_triton(by_triton[0])
        monkeypatch.setattr(op, "uses_triton", lambda tensor: False)
    by_torch = logits_of(model_dir)
    assert not all(map(torch.equal, by_triton, by_torch))  # both did run
    for actual, expected in zip(by_triton, by_torch, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
