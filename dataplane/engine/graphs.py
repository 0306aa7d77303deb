"""Small steps captured once and replayed: the host launches one graph instead of each kernel.

A step is replayed when its tokens are few, as those of decode and of short prompts are, and its
adapters are plain LoRA within the layers, and aligned. The device then waits for the whole of an
adapter that is still on its way. Everything else runs eagerly: long prompts, DoRA, biases, and
adapters of the embedding or the head, and steps with drafts.

Each token is a row of its own, also of a prompt. Its attention reads the keys before it anew for
each row, which is little where prompts are short, and much less than a host takes to launch every
kernel of a step.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from dataplane.engine.batch import adapter_spans
from dataplane.engine.chunk import MAX_SCORED, Chunk
from dataplane.engine.graph_buckets import GraphBuckets, Variant
from dataplane.engine.graph_inputs import StepInputs
from dataplane.engine.step_adapters import lora_spans
from dataplane.lora.resident import ResidentAdapter, ResidentAdapters
from dataplane.models.decoder import Decoder, LayerSegments
from dataplane.models.shapes import group_names, layer_groups, mixture_groups
from dataplane.pool.pool import PagePool
from kernels.gpu.staging import staged
from kernels.lora.bucket import LoraBucket
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import MAX_SLICES
from kernels.lora.tuning import Regime, lora_tiles

_log = logging.getLogger(__name__)

Replay = Callable[[], None]

_ALIGNMENT = 8
_MAX_PROMPT_KEYS = 1 << 15  # that a step's prompt rows read in each layer; not measured


class Capture(NamedTuple):
    """How work is captured.

    record: runs it (so that nothing is compiled or allocated for the first time later), captures
        it, and returns what runs it again over the same memory. Raises: torch.OutOfMemoryError.
    used_bytes: of the device, now.
    """

    record: Callable[[Callable[[], None]], Replay]
    used_bytes: Callable[[], int]


class GraphReport(NamedTuple):
    """Of all graphs of an engine."""

    num_graphs: int = 0
    capture_s: float = 0.0
    memory_bytes: int = 0
    num_left_out: int = 0  # for want of memory: such steps run eagerly


@dataclass(frozen=True)
class GraphStep:
    """A step that will be replayed. It must be run, once, in the order in which steps were made."""

    _logit_rows: torch.Tensor | int  # whose next tokens are asked for, or how many: the first ones
    _sends: Seq[Callable[[], None]]
    _replay: Replay
    _previous_ids: torch.Tensor  # what the graph reads
    _logits: torch.Tensor  # what the graph writes

    def run(self, previous_ids: torch.Tensor | None) -> torch.Tensor:
        """previous_ids: [any] int64, device: what the step before sampled.

        Returns logits [num_logits, vocab_size], to be read before the next step is run.
        """
        for send in self._sends:
            send()
        if previous_ids is not None:
            self._previous_ids[: len(previous_ids)].copy_(previous_ids)
        self._replay()
        rows = self._logit_rows
        return self._logits[:rows] if isinstance(rows, int) else self._logits[rows]


class StepGraphs:
    """Of one decoder over one pool, which has a padding page."""

    def __init__(
        self,
        decoder: Decoder,
        pool: PagePool,
        buckets: GraphBuckets,
        capture: Capture,
        max_running: int,
    ) -> None:
        self._pool = pool
        self._buckets = buckets
        self._capture = capture
        # Who replaces `forward` later means what is run from then on.
        self._forward = decoder.forward
        self._num_layers = decoder.config.num_layers
        self._group_names = group_names(decoder.config)
        self._num_slices: dict[str, int] = dict.fromkeys(self._group_names, 1)
        for layer in range(self._num_layers):
            groups = layer_groups(decoder.config, layer), mixture_groups(decoder.config, layer)
            for name, group in itertools.chain(*(each.items() for each in groups)):
                self._num_slices[name] = len(group.projections)
        device, most = pool.device, buckets.most_rows
        self._inputs = {
            num_blocks: StepInputs(
                most,
                num_blocks,
                page_tokens=pool.page_tokens,
                padding_page=pool.padding_page,
                device=device,
            )
            for num_blocks in buckets.contexts
        }
        self._tiles = lora_tiles(device)
        self._lora = LoraBatchMetadata(
            LoraBucket(
                max_tokens=most,
                max_segments=most,
                max_pages=pool.num_pages,
                max_total_rank=MAX_SLICES * buckets.ranks[-1],
                max_segment_tokens=most,
                alignment=_ALIGNMENT,
            ),
            self._num_layers,
            len(self._group_names),
            device,
            regime=self._tiles.decode,
        )
        # What a step sampled, which may have had drafts.
        most_sampled = max_running + MAX_SCORED
        self._previous_ids = torch.zeros(most_sampled, dtype=torch.int64, device=device)
        self._logits = pool.data.new_zeros(most, decoder.config.vocab_size)
        self._replays: dict[Variant, Replay] = {}
        self.report = GraphReport()
        self.num_steps = 0
        """Steps that were replayed."""

    def capture_all(self) -> None:
        """Before the first step: it writes to the padding page only. Graphs that there is no
        memory for are left out, and `report` says so."""
        variants = self._buckets.variants
        before, started_s = self._capture.used_bytes(), time.perf_counter()
        try:
            for variant in variants:
                self._replays[variant] = self._capture.record(self._work(variant))
        except torch.OutOfMemoryError as error:
            _log.warning("no memory for more CUDA graphs: %s", error)
        self.report = GraphReport(
            num_graphs=len(self._replays),
            capture_s=time.perf_counter() - started_s,
            memory_bytes=max(0, self._capture.used_bytes() - before),
            num_left_out=len(variants) - len(self._replays),
        )
        _log.info(
            "captured %d graphs in %.1f s, %.0f MiB; %d left out",
            self.report.num_graphs,
            self.report.capture_s,
            self.report.memory_bytes / 2**20,
            self.report.num_left_out,
        )

    def step(
        self,
        chunks: Seq[Chunk],
        sources: Seq[int],
        resident: ResidentAdapters,
    ) -> GraphStep | None:
        """None when the step must run eagerly.

        chunks: those of one adapter adjacent. sources: as `StepInputs.prepare` takes them.
        """
        if any(each.num_scored or each.drafts for each in chunks):
            return None
        if _prompt_keys(chunks) > _MAX_PROMPT_KEYS:
            return None
        spans = adapter_spans(chunks)
        adapters = [resident.held(digest) for digest, _, _ in spans]
        if not all(map(_can_be_replayed, adapters)):
            return None
        if len({digest for digest, _, _ in spans}) < len(spans):
            return None  # there is room for each adapter's pages once
        variant = self._buckets.variant(
            sum(chunk.num_tokens for chunk in chunks),
            self._pool.blocks_for(max(chunk.end for chunk in chunks)),
            max((each.layout.device_rows.max_rank for each in adapters), default=0),
            len(adapters),
        )
        replay = self._replays.get(variant) if variant else None
        if variant is None or replay is None:
            return None
        sends = [self._inputs[variant.num_blocks].prepare(chunks, sources, variant.size)]
        if adapters:
            rows = [each.layout.device_rows for each in adapters]
            block_tokens = self._regime(variant).block_tokens
            sends.append(self._lora.prepare(lora_spans(spans, adapters), rows, block_tokens))
        if wait := resident.waiter(digest for digest, _, _ in spans):
            sends.append(partial(wait, self._num_layers - 1))
        self.num_steps += 1
        rows_asked = _logit_rows(chunks, self._pool.device)
        return GraphStep(rows_asked, sends, replay, self._previous_ids, self._logits)

    def _work(self, variant: Variant) -> Callable[[], None]:
        inputs = self._inputs[variant.num_blocks]
        layers = self._layers(variant)
        pool, logits = self._pool, self._logits[: variant.size]
        # Until a step has been sent, all rows pad.
        inputs.prepare((), (), variant.size)()

        @torch.inference_mode()
        def work() -> None:
            batch = inputs.batch(variant.size, layers, self._previous_ids)
            logits.copy_(self._forward(batch, pool.data, pool.page_tokens))

        return work

    def _layers(self, variant: Variant) -> list[LayerSegments]:
        if not variant.rank:
            return [{}] * self._num_layers
        lora = [
            self._lora.narrowed(
                variant.size,
                self._num_slices[name] * variant.rank,
                variant.num_adapters,
                self._regime(variant),
            )
            for name in self._group_names
        ]
        return [
            {name: lora[at].group(layer, at) for at, name in enumerate(self._group_names)}
            for layer in range(self._num_layers)
        ]

    def _regime(self, variant: Variant) -> Regime:
        return self._tiles.shared if variant.is_shared else self._tiles.decode


def _can_be_replayed(adapter: ResidentAdapter) -> bool:
    layout = adapter.layout
    plain = not (layout.affine or layout.head or layout.vocabulary)
    return plain and layout.device_rows.alignment == _ALIGNMENT


def _prompt_keys(chunks: Seq[Chunk]) -> int:
    """That rows of chunks of several tokens read."""
    many = (chunk for chunk in chunks if chunk.num_tokens > 1)
    return sum(chunk.num_tokens * (chunk.start + chunk.end + 1) // 2 for chunk in many)


def _logit_rows(chunks: Seq[Chunk], device: torch.device) -> torch.Tensor | int:
    """As `GraphStep` takes them."""
    if all(chunk.num_tokens == 1 and chunk.samples for chunk in chunks):
        return len(chunks)
    ends = itertools.accumulate(chunk.num_tokens for chunk in chunks)
    rows = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.samples]
    return staged(rows, torch.int64, device)
