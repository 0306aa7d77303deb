"""Steps over nothing that matters, so that no request waits for a kernel's compiler."""

from __future__ import annotations

import numpy as np
import torch

from dataplane.channel import Sampling
from dataplane.models.config import ModelConfig
from dataplane.models.decoder import Batch, Decoder, LayerSegments
from dataplane.models.shapes import GROUPS, layer_groups
from dataplane.pool.pool import PagePool
from dataplane.sampling.plan import Row, SamplingPlan
from dataplane.sampling.sampler import pick
from kernels.attention.metadata import Queries, attention_metadata
from kernels.lora.metadata import LoraBatchMetadata, LoraBucket

_EVERYTHING = Sampling(
    max_tokens=1,
    temperature=1.0,
    top_k=2,
    top_p=0.5,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logprobs=1,
)


def compile_adapter_kernels(pool: PagePool, config: ModelConfig) -> None:
    """On a GPU, for the widths of the model's projections."""
    from kernels.lora.triton_warm_up import warm_up as compile_lora  # Triton: a GPU's alone
    from kernels.vocabulary.triton_rows import warm_up as compile_rows

    groups = [
        group
        for layer in range(config.num_layers)
        for group in layer_groups(config, layer).values()
    ]
    compile_lora(pool.data[0], {(each.in_features, each.out_features) for each in groups})
    compile_rows(pool.data)


def warm_up(decoder: Decoder, pool: PagePool) -> None:
    """Runs a prefill and a decode, of the base model and beside adapters where they have a stream,
    and samples, in pages of an unused pool that it leaves cleared. Kernels are compiled for dtypes
    and the model's sizes only, so one batch is enough."""
    _compile_quantized(decoder)
    _compile_experts(decoder, pool)
    last, num_layers = pool.num_pages - 1, decoder.config.num_layers

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=pool.device)

    def logits_of(adapters: LayerSegments) -> torch.Tensor:
        batch = Batch(
            token_ids=integers(1, 1, 1),
            positions=integers(0, 1, 0),
            page_index=integers(0, 0, last),
            page_offset=integers(0, 1, 0),
            attention=attention_metadata(
                [Queries(0, 2, 2, [0]), Queries(2, 3, 1, [last])], pool.device
            ),
            layers=[adapters] * num_layers,
            affine=(),
            logit_rows=integers(1, 2),
            lm_head=(),
        )
        return decoder.forward(batch, pool.data, pool.page_tokens)

    logits = logits_of({})
    if decoder.has_lora_stream:  # what reads both then is compiled for that
        logits = logits_of(_empty_segments(pool.device))
    rows = [
        Row(_EVERYTHING, [1, 1], 1, banned=[0], unread=0, is_constrained=True),
        Row(Sampling(max_tokens=1), [1], 1, banned=[]),
    ]
    words = np.full((1, -(-logits.shape[1] // 32)), -1, dtype=np.int32)
    plan = SamplingPlan.of(rows, pool.device).with_mask(words)
    pick(logits, plan, previous_ids=integers(1)).to_host()
    # Drawn from logits that nothing has changed: another dtype.
    drawn = Row(Sampling(max_tokens=1, temperature=1.0), [1], 1, banned=[])
    pick(logits, SamplingPlan.of([drawn, drawn], pool.device)).to_host()
    for page in {0, last}:
        pool.data[:, page].zero_()


def _compile_quantized(decoder: Decoder) -> None:
    """For the numbers of tokens that the batch below does not have."""
    from kernels.quantized.triton_warm_up import warm_up as compile_quantized

    weights = decoder.weights
    compile_quantized(
        [
            *(
                (getattr(layer, name), getattr(layer, f"{name}_bias"))
                for layer in weights.layers
                for name in GROUPS
                if getattr(layer, name) is not None
            ),
            (weights.head, None),
        ]
    )


def _compile_experts(decoder: Decoder, pool: PagePool) -> None:
    """Likewise."""
    from kernels.experts.triton_warm_up import warm_up as compile_experts

    layers = [layer.experts for layer in decoder.weights.layers if layer.experts is not None]
    compile_experts(layers, decoder.activation, pool.data[0])


def _empty_segments(device: torch.device) -> LayerSegments:
    """Of every group; launches over them end at once."""
    metadata = LoraBatchMetadata(LoraBucket(1, 1, 1, 1, 1, 8), 1, len(GROUPS), device)
    return {name: metadata.group(0, at) for at, name in enumerate(GROUPS)}
