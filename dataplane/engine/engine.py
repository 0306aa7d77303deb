"""The engine: requests in, tokens out.

While a step runs on the device the next one is scheduled, built and launched behind it; then the
first one's tokens are read and sent while the second one runs. The device waits for the host only
where the host needs the tokens first: before a preemption, and after a sequence gave no finite
output. See `pipeline`, `holdings` and docs/architecture.md.

What a constrained sequence may choose depends on its last token: its step is sampled once the one
before it was collected, while its forward pass runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

from dataplane.channel import (
    Directive,
    PoolReport,
    Prefetch,
    Stats,
    Submit,
    Unload,
    Unpin,
    Vocabulary,
)
from dataplane.cost_model import CostModel
from dataplane.engine.batch import BatchBuilder
from dataplane.engine.chunk import Chunk
from dataplane.engine.constrained import Constrained
from dataplane.engine.device import device_for
from dataplane.engine.drafts import agreed
from dataplane.engine.graphs import GraphStep, StepGraphs
from dataplane.engine.outcomes import Outcomes
from dataplane.engine.patience import Patience
from dataplane.engine.pipeline import DEPTH, Pipeline
from dataplane.engine.prefix_cache import PrefixCache
from dataplane.engine.report import Report
from dataplane.engine.scheduler import Scheduler
from dataplane.engine.sequence import Sequence
from dataplane.engine.step_result import StepResult
from dataplane.engine.step_times import StepTimes
from dataplane.lora.loader import AdapterLoader
from dataplane.lora.supply import AdapterSupply
from dataplane.models.decoder import Decoder
from dataplane.pool.allocator import PoolIntegrityError
from dataplane.pool.pool import PagePool
from dataplane.sampling.plan import Row


class Engine:
    """Not thread-safe: one thread makes every call. `clock` gives monotonic seconds."""

    def __init__(
        self,
        decoder: Decoder,
        pool: PagePool,
        loader: AdapterLoader,
        *,
        eos_token_ids: frozenset[int],
        max_context: int,
        max_running: int,
        max_batch_tokens: int,
        max_waiting: int,
        speculative_tokens: int = 0,
        prefix_cache: bool = True,
        max_cluster_delay_s: float = 0.25,
        priority_ageing_s: float = 10.0,
        pipeline_depth: int = DEPTH,
        graphs: StepGraphs | None = None,
        on_grammar: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """speculative_tokens: the most drafts of a sequence in a step; see `drafting`.
        pipeline_depth: steps in flight at once; with 1 nothing overlaps. graphs: of `decoder`
        over `pool`, captured; None: every step runs eagerly. on_grammar: called from another thread
        when a grammar was compiled, and `step` is of use."""
        self._decoder = decoder
        self._pool = pool
        self._eos = eos_token_ids
        self._max_context = max_context
        self._clock = clock
        self._costs = CostModel()
        supply = self._supply = AdapterSupply(pool, loader, self._costs)
        self._resident = supply.resident
        self._prefixes = PrefixCache(pool, self._costs, enabled=prefix_cache)
        self._scheduler = Scheduler(
            pool,
            supply,
            self._prefixes,
            self._costs,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            max_waiting=max_waiting,
            max_cluster_delay_s=max_cluster_delay_s,
            priority_ageing_s=priority_ageing_s,
            max_drafts=speculative_tokens,
        )
        self._batches = BatchBuilder(decoder.config, pool, self._resident)
        self._patience = Patience(self._costs)
        self._times = StepTimes(self._costs, self._patience)
        self.graphs = graphs
        self._pipeline = Pipeline(decoder, pool, device_for(pool.device), pipeline_depth)
        self._constrained = Constrained(
            decoder.config.vocab_size, eos_token_ids, max_waiting, on_grammar, clock
        )
        self._report = Report(
            pool,
            loader,
            supply,
            self._prefixes,
            self._costs,
            self._scheduler,
            self._constrained,
            graphs,
        )
        self._outcomes = Outcomes(self._scheduler, self._constrained, eos_token_ids)
        self._ended = StepResult()  # requests that ended before they were scheduled
        self._speculates = speculative_tokens > 0

    @property
    def has_work(self) -> bool:
        """Whether a step could make progress, or only the end of a load or of compiling can."""
        waits = self._scheduler.has_work or self._constrained.num_waiting > 0
        return waits or bool(self._pipeline) or not self._ended.is_empty

    @property
    def is_running(self) -> bool:
        """Whether steps compute; other threads may ask."""
        return bool(self._scheduler.running)

    @property
    def is_waiting_for_loads(self) -> bool:
        """Only requests whose adapter is still loading, or whose grammar is being compiled, are
        left: nothing to compute now."""
        if self._pipeline or not self._ended.is_empty:
            return False
        if self._scheduler.has_work:
            return self._scheduler.is_waiting_for_loads
        return self._constrained.num_waiting > 0

    @property
    def is_bringing_adapters(self) -> bool:
        """A step is of use though there may be no request: adapters are on their way."""
        return self._supply.is_busy

    @property
    def is_copying(self) -> bool:
        """A step would copy a part of an adapter into the pool."""
        return self._supply.is_copying

    @property
    def next_due_s(self) -> float | None:
        """When a request's time may be over: a step is wanted then, whatever else goes on."""
        return self._scheduler.next_due_s

    @property
    def spare_s(self) -> float:
        """How long the next `step` may be put off, for others to come that it can take in, while
        the device has enough to do."""
        return 0.0 if self._pipeline.is_idle else self._patience.left_s(self._clock())

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Of the tokenizer; before the first request: a large one takes a second and more."""
        self._constrained.use(vocabulary)

    def submit(self, request: Submit) -> None:
        """Queues a request; whatever is wrong with it is part of the next step's result."""
        self._enqueue(Sequence.of(request, self._max_context))

    def abort(self, handle: int) -> None:
        """Frees all that a request holds: at once, or when the step that it is part of has run.
        Unknown handles are ignored."""
        self._constrained.remove(handle)
        sequence = self._outcomes.sequences.pop(handle, None)
        if sequence:
            self._scheduler.remove(sequence, self._clock())

    def _enqueue(self, sequence: Sequence) -> None:
        finish, stop_token = sequence.finish_reason(self._eos)
        if finish:  # all its tokens were delivered before; only the end was lost
            self._ended.end(sequence, [], [], [], finish=finish, stop_token=stop_token)
            return
        try:
            if sequence.lacks_matcher:
                self._constrained.add(sequence)
                return
            self._scheduler.add(sequence, self._clock())
        except Exception as error:
            self._ended.fail(sequence, error)
            return
        self._outcomes.sequences[sequence.handle] = sequence

    def _take_compiled(self) -> None:
        """Queues those whose grammar was compiled."""
        for sequence, error in self._constrained.compiled():
            if error is not None:
                self._ended.fail(sequence, error)
            else:
                self._enqueue(sequence)

    def direct(self, directive: Directive) -> None:
        """Does what the control plane or an operator says about an adapter."""
        now_s = self._clock()
        match directive:
            case Prefetch(adapter=adapter, tier="host" | "pool" as tier, pin=True):
                self._supply.pin(adapter, tier, now_s)
            case Prefetch(adapter=adapter, tier="host" | "pool" as tier):
                self._supply.prefetches.ask(adapter, tier, now_s, pinned=False)
            case Prefetch(tier=tier):
                raise AssertionError(f"tier {tier}: checked by whoever made the directive")
            case Unpin(digest):
                self._supply.unpin(digest)
            case Unload(digest, within_s):
                self._supply.unload(digest, now_s + within_s)

    def step(self) -> StepResult:
        """Launches the next step, if any request can run now, and gives the tokens of the one
        before it. Nothing of either when there is none."""
        self._take_compiled()
        result, self._ended = self._ended, StepResult()
        has_launched = self._launch_next(result)
        if self._pipeline and (self._pipeline.is_full or not has_launched):
            goes_on = not has_launched and self._scheduler.awaits_drafts
            self._collect(result)
            if goes_on and not self._pipeline:  # the device runs while they are told
                self._launch_next(result)
        assert not self._pipeline.is_unsampled
        return result

    def _launch_next(self, result: StepResult) -> bool:
        """Whether anything was to be launched."""
        started_s = self._clock()
        chunks, failures = self._scheduler.schedule(started_s)
        for failure in failures:
            self._outcomes.fail(failure, result)
        if chunks:
            self._launch(chunks, result)
            self._patience.host_took(self._clock() - started_s)
        return bool(chunks)

    def close(self) -> None:
        """Waits for what was launched; nobody learns what came of it."""
        self._pipeline.abandon()
        self._constrained.close()

    def stats(self) -> Stats:
        return self._report.stats(self._outcomes.num_generated, self._clock())

    def copy_s(self, digest: str) -> float:
        """What an adapter's last copy into the pool took; 0 when that is not known."""
        return self._resident.copy_s(digest)

    def inspect(self, ticket: int) -> PoolReport:
        """The owner of each page, and whether the books are right."""
        try:
            self.check_integrity()
            problem = ""
        except PoolIntegrityError as error:
            problem = str(error)
        return PoolReport(
            ticket=ticket,
            owners=self._pool.allocator.owners(),
            num_used_pages=self._report.num_used_pages,
            problem=problem,
        )

    def check_integrity(self) -> None:
        """Raises: PoolIntegrityError unless every page has exactly the owner on the books."""
        self._pool.allocator.check_integrity(
            {**self._scheduler.claims(), **self._resident.claims(), **self._prefixes.claims()}
        )
        self._prefixes.check_integrity(self._scheduler.held_blocks())
        self._resident.check_integrity()

    def clear_idle(self) -> None:
        """Empties the pool of all that nobody uses."""
        self._pool.make_free(self._pool.num_available)

    def _launch(self, chunks: list[Chunk], result: StepResult) -> None:
        step = self._graph_step(chunks) or self._batches.build(chunks)
        rows = [self._row(each.sequence, at) for each in chunks for at in range(each.num_sampled)]
        self._pipeline.launch(chunks, step, rows)
        can_sample = self._constrained.launched([c.sequence for c in chunks if c.samples])
        self._scheduler.launched(chunks)
        self._times.launched(chunks, self._clock())
        if can_sample:
            self._sample(result)

    def _sample(self, result: StepResult) -> None:
        """Launches the sampling of the newest step, if that is yet to be done. All tokens of its
        constrained sequences have been read."""
        if not self._pipeline.is_unsampled:
            return
        words, failed = self._constrained.masks(self._outcomes.sequences)
        self._pipeline.sample(words)
        for failure in failed:
            self._outcomes.end_with(failure, self._clock(), result)

    def _graph_step(self, chunks: list[Chunk]) -> GraphStep | None:
        if self.graphs is None:
            return None
        sources = [self._pipeline.unread_row(chunk.sequence) for chunk in chunks]
        return self.graphs.step(chunks, sources, self._resident)

    def _row(self, sequence: Sequence, num_drafts: int) -> Row:
        """num_drafts: before the token to sample."""
        sampling = sequence.sampling
        banned: list[int] = []
        is_constrained = sequence.matcher is not None
        num_output = sequence.num_output + sequence.num_unread + num_drafts
        too_short = num_output < sampling.min_tokens
        if too_short and not is_constrained:
            banned = [*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos)]
        unread = self._pipeline.unread_row(sequence)
        tokens = sequence.tokens
        if sampling.has_penalty:
            tokens = sequence.history.of(tokens)
        num_prompt = sequence.num_prompt
        return Row(sampling, tokens, num_prompt, banned, unread, is_constrained, num_drafts)

    def _collect(self, result: StepResult) -> None:
        """Takes in the oldest step in flight."""
        step = self._pipeline.collect()
        now_s = self._clock()
        result.times.append(step.time)
        self._times.collected(step.chunks, step.time, now_s)
        outcomes = self._outcomes
        num_before = outcomes.num_generated
        num_decoding = self._scheduler.num_decoding if self._speculates else 0
        self._scheduler.computed(step.chunks, now_s)
        ruined = outcomes.take_scores(step, result)
        rows = iter(step.sampled)
        for chunk in step.chunks:
            sampled = list(islice(rows, chunk.num_sampled))
            if not sampled or chunk.sequence.handle not in outcomes.sequences:
                continue  # it ended while this step was in flight
            if not outcomes.take(chunk.sequence, agreed(chunk.drafts, sampled), now_s, result):
                ruined.append(chunk.sequence)
        self._times.gave(outcomes.num_generated - num_before, num_decoding)
        self._sample(result)
        # What they computed must be out of the prefix cache before anybody else is scheduled, and
        # that must wait for the last step that has them.
        while ruined and self._pipeline:
            self._collect(result)
        for sequence in ruined:
            self._scheduler.remove(sequence, now_s, ruined=True)
