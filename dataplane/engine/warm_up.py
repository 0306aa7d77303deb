"""A forward pass over nothing that matters, so that no request waits for a kernel's compiler."""

from __future__ import annotations

import torch

from dataplane.models.decoder import Batch, Decoder
from dataplane.pool.pool import PagePool
from kernels.attention.metadata import Queries, attention_metadata


def warm_up(decoder: Decoder, pool: PagePool) -> None:
    """Runs a prefill and a decode of the base model, in pages of an unused pool that it leaves
    cleared. Kernels are compiled for dtypes and the model's sizes only, so one batch is enough."""
    last = pool.num_pages - 1

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=pool.device)

    batch = Batch(
        token_ids=integers(1, 1, 1),
        positions=integers(0, 1, 0),
        page_index=integers(0, 0, last),
        page_offset=integers(0, 1, 0),
        attention=attention_metadata(
            [Queries(0, 2, 2, [0]), Queries(2, 3, 1, [last])], pool.device
        ),
        layers=[{}] * decoder.config.num_layers,
        affine=(),
        logit_rows=integers(1, 2),
        lm_head=(),
    )
    decoder.forward(batch, pool.data, pool.page_tokens)
    for page in {0, last}:
        pool.data[:, page].zero_()
