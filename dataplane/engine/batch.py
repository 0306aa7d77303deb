"""From scheduled chunks to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataplane.engine.chunk import Chunk
from dataplane.engine.step_adapters import AdapterSpan, HeldAdapters, StepAdapters
from dataplane.models.config import ModelConfig
from dataplane.models.decoder import Batch
from dataplane.pool.pool import PagePool
from kernels.attention.metadata import Queries, attention_metadata
from kernels.gpu.staging import staged_together

_MAX_KEYS_AGAIN = 1 << 20
"""That a chunk's generated tokens read one by one when computed again; beyond it, together."""


_Integers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StepPlan:
    """All that ranks must know of a step, in host memory; integers are int64. Rank 0 alone knows
    the tokens, and applies adapters' heads."""

    token_ids: _Integers  # [num_tokens]
    positions: _Integers  # [num_tokens]
    page_index: _Integers  # [num_tokens]
    logit_rows: _Integers  # [num_logits]
    queries: Seq[Queries]
    spans: Seq[AdapterSpan]
    logit_spans: Seq[AdapterSpan]


class BatchBuilder:
    def __init__(self, config: ModelConfig, pool: PagePool, resident: HeldAdapters) -> None:
        self._pool = pool
        self._resident = resident
        self._adapters = StepAdapters(config, pool, resident)
        self._is_exact = pool.device.type == "cpu"  # a GPU's decode goes by the size of the batch

    def build(self, chunks: Seq[Chunk]) -> Batch:
        """Of a step that is launched next; other ranks are told of it.

        chunks: those of one adapter adjacent (as `Scheduler.schedule` orders them).
        """
        plan = self._plan(chunks)
        if self._pool.mirror is not None:
            self._pool.mirror.step(plan)
        return self.batch_of(plan)

    def batch_of(self, plan: StepPlan) -> Batch:
        layers, head = self._adapters.layers(plan.spans), self._adapters.head(plan.logit_spans)
        at = plan.positions
        parts = (plan.token_ids, at, plan.page_index, at % self._pool.page_tokens, plan.logit_rows)
        sent = staged_together(parts, self._pool.device)
        return Batch(
            token_ids=sent[0],
            positions=sent[1],
            page_index=sent[2],
            page_offset=sent[3],
            attention=attention_metadata(plan.queries, self._pool.device),
            layers=layers.segments,
            affine=layers.affine,
            logit_rows=sent[4],
            lm_head=head.lora,
            embedding=layers.embedding,
            head=head.rows,
            wait=self._resident.waiter(digest for digest, _, _ in plan.spans),
        )

    def _plan(self, chunks: Seq[Chunk]) -> StepPlan:
        page_tokens = self._pool.page_tokens
        token_ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        queries: list[Queries] = []
        logit_rows: list[int] = []
        spans = adapter_spans(chunks)
        for chunk in chunks:
            sequence, start = chunk.sequence, len(token_ids)
            first, last = chunk.start, chunk.end
            known = sequence.tokens[first : chunk.sure_end]
            token_ids += known or [0]  # one that is unread is put in by the device
            token_ids += chunk.drafts
            positions += range(first, last)
            pages += [sequence.block_table[p // page_tokens] for p in range(first, last)]
            end = len(token_ids)
            queries += self._queries(chunk, start)
            logit_rows += range(start, start + chunk.num_scored)
            logit_rows += range(end - chunk.num_sampled, end)
        has_all = len(logit_rows) == len(token_ids)
        ids, at, page_index, rows = (
            np.array(each, dtype=np.int64) for each in (token_ids, positions, pages, logit_rows)
        )
        return StepPlan(
            ids, at, page_index, rows, queries, spans, spans if has_all else _logit_spans(chunks)
        )

    def _queries(self, chunk: Chunk, row: int) -> list[Queries]:
        """Of a chunk's tokens, which stand in rows from `row` on.

        On CPU a token's result does not depend on who else is in its step. So that neither does it
        depend on preemptions, or on an engine that was lost, tokens are attended for as they first
        were: the prompt's together, even a last one, generated ones and drafts each by itself.
        """
        first, last, table = chunk.start, chunk.end, chunk.sequence.block_table
        if not self._is_exact or (first + 1 == last and first >= chunk.sequence.num_prompt):
            blocks = table[: self._pool.blocks_for(last)]
            return [Queries(row, row + last - first, last, blocks)]
        generated = min(max(chunk.sequence.num_prompt, first), last)
        if (last - generated) * last > _MAX_KEYS_AGAIN and not chunk.drafts:
            generated = last
        queries: list[Queries] = []
        if first < generated:
            blocks = table[: self._pool.blocks_for(generated)]
            queries.append(Queries(row, row + generated - first, generated, blocks, True))
        for position in range(generated, last):
            at, blocks = row + position - first, table[: self._pool.blocks_for(position + 1)]
            queries.append(Queries(at, at + 1, position + 1, blocks))
        return queries


def adapter_spans(chunks: Seq[Chunk]) -> list[AdapterSpan]:
    """chunks: those of one adapter adjacent. One that is activated in mid-prompt has no part in
    what comes before, and may have several spans."""
    spans: list[AdapterSpan] = []
    start = 0
    for chunk in chunks:
        end = start + chunk.num_tokens
        if chunk.sequence.adapter:
            _extend(spans, chunk.sequence.adapter.digest, start + chunk.num_before_adapter, end)
        start = end
    return spans


def _logit_spans(chunks: Seq[Chunk]) -> list[AdapterSpan]:
    """As `adapter_spans`, of the rows of logits."""
    spans: list[AdapterSpan] = []
    start = 0
    for chunk in chunks:
        end = start + chunk.num_logits
        if chunk.sequence.adapter:
            # Whose next token is sampled is behind the prompt's last one, and so are its drafts.
            num_before = min(chunk.num_before_adapter, chunk.num_scored)
            _extend(spans, chunk.sequence.adapter.digest, start + num_before, end)
        start = end
    return spans


def _extend(spans: list[AdapterSpan], digest: str, start: int, end: int) -> None:
    """Appends rows [start, end), if there are any, joining them to the span before when it is the
    same adapter's."""
    if start == end:
        return
    if spans and spans[-1][0] == digest and spans[-1][2] == start:
        spans[-1] = (digest, spans[-1][1], end)
    else:
        spans.append((digest, start, end))
