"""A request inside the engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataplane.channel import Adapter, Sampling, Submit, Timings, TokenLogprobs
from dataplane.engine.prefix_cache import Lineage
from dataplane.sampling.history import History

if TYPE_CHECKING:
    from dataplane.constraints.matcher import Matcher
    from dataplane.engine.drafts import Drafts
    from dataplane.engine.prefix_cache import CachedBlock, PrefixCache

MAX_PRIORITY = 10


@dataclass(eq=False)
class Sequence:
    """`tokens` is prompt plus output; `num_unread` more are sampled by launched steps and still on
    the device. The KV of the first `num_computed` of all these is in the pages of `block_table`
    once the launched steps have run; the rest are pending: one when decoding, more when prefilling.
    With `num_drafts` under way `num_unread` is the least that it gets, and it is in no other step.

    Its adapter applies to the tokens from `active_from` on, which is in the prompt.

    Its first full blocks are `shared`: cached blocks that it holds. Their pages are the first of
    `block_table`, never written to again, but where it keeps a page of its own for a block that was
    cached already; the others are its own, too."""

    handle: int
    tokens: list[int]
    num_prompt: int
    sampling: Sampling
    adapter: Adapter | None
    tenant: str
    arrival_s: float
    deadline_s: float | None
    first_token_by_s: float | None = None
    priority: int = 0
    cache_scope: str = ""  # of cached blocks only those of the same one are its to find
    max_context: int = sys.maxsize
    active_from: int = 0
    num_computed: int = 0
    num_unread: int = 0
    num_drafts: int = 0  # under way; how many of them come to be tokens is not known yet
    last_step: int = 0  # the last launched step that it is part of, as `Holdings` counts them
    block_table: list[int] = field(default_factory=list[int])
    shared: list[CachedBlock] = field(default_factory=list["CachedBlock"])
    is_probe: bool = False  # runs although it seems hopeless: see `probes`
    num_cached: int = 0  # tokens that it found computed when it first ran
    scheduled_s: float | None = None  # first
    adapter_ready_s: float | None = None
    first_token_s: float | None = None
    history: History = field(default_factory=History)
    matcher: Matcher | None = None  # where `tokens` are in the grammar that they must hold to
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    mask_cpu_s: float = 0.0  # that its last mask took
    drafts: Drafts | None = None  # where it came by before; only of one that may draft

    @staticmethod
    def of(request: Submit, max_context: int = sys.maxsize) -> Sequence:
        return Sequence(
            handle=request.handle,
            tokens=[*request.prompt, *request.generated],
            num_prompt=len(request.prompt),
            sampling=request.sampling,
            adapter=request.adapter,
            tenant=request.tenant,
            arrival_s=request.arrival_s,
            deadline_s=request.deadline_s,
            first_token_by_s=request.first_token_by_s,
            priority=max(-MAX_PRIORITY, min(request.priority, MAX_PRIORITY)),
            cache_scope=request.cache_scope,
            max_context=max_context,
            active_from=request.active_from,
        )

    @property
    def owner(self) -> str:
        """Its name on the pool's books."""
        return f"sequence:{self.handle}"

    @property
    def has_objective(self) -> bool:
        return self.first_token_by_s is not None or self.deadline_s is not None

    @property
    def lacks_matcher(self) -> bool:
        """It is to hold to a grammar that is yet to be compiled for it."""
        return bool(self.sampling.grammar) and self.matcher is None

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        return len(self.tokens) + self.num_unread - self.num_computed

    @property
    def wants_scores(self) -> bool:
        """Whether tokens of its prompt are yet to be scored. So long it computes all of them: what
        a prefix cache spares has no logits."""
        if self.sampling.prompt_logprobs < 0 or self.first_token_s is not None:
            return False
        return len(self.prompt_logprobs) < self.num_prompt - 1

    def computed_in(self, prefixes: PrefixCache) -> list[CachedBlock]:
        """Blocks of its tokens that are there and spare it their computing."""
        if self.wants_scores:
            return []
        return prefixes.match(self.lineage, self.tokens)

    def num_scored(self, start: int, end: int) -> int:
        """Of its tokens [start, end), which follow on each other, how many are to be scored by."""
        return max(0, min(end, self.num_prompt - 1) - start) if self.wants_scores else 0

    def take_scores(self) -> list[TokenLogprobs]:
        """For who asked; they are told once."""
        scores, self.prompt_logprobs = self.prompt_logprobs, []
        return scores

    @property
    def may_draft(self) -> bool:
        """Whether what it may choose after a draft is known before the tokens until there are."""
        return not self.sampling.grammar and not self.sampling.has_penalty

    @property
    def max_length(self) -> int:
        """Tokens it can grow to."""
        return min(self.num_prompt + self.sampling.max_tokens, self.max_context)

    @property
    def is_spent(self) -> bool:
        """Its last token was sampled, or is being sampled, whatever tokens it gets."""
        length = len(self.tokens) + self.num_unread
        return length > self.num_prompt and length >= self.max_length

    @property
    def min_output(self) -> int:
        """Tokens it will generate for certain, if nothing ends it early."""
        sampling = self.sampling
        if sampling.grammar:
            return 1  # the grammar may end at any time
        endless = sampling.ignore_eos and not sampling.stop_token_ids
        return sampling.max_tokens if endless else min(sampling.max_tokens, sampling.min_tokens + 1)

    @property
    def lineage(self) -> Lineage:
        """Of its cached blocks."""
        return Lineage(self.queue_key, self.active_from, self.cache_scope)

    @property
    def queue_key(self) -> str:
        """Its waiting queue: the adapter's digest, "" for the base model."""
        return self.adapter.digest if self.adapter else ""

    def finish_reason(self, eos_token_ids: frozenset[int]) -> tuple[str, int]:
        """("", -1) while it goes on; else ("stop", token) or ("length", -1)."""
        if not self.num_output:
            return "", -1
        last = self.tokens[-1]
        sampling = self.sampling
        stops = last in sampling.stop_token_ids or (
            not sampling.ignore_eos and last in eos_token_ids
        )
        if stops and self.num_output > sampling.min_tokens:
            return "stop", last
        if self.matcher is not None and self.matcher.is_complete:
            return "stop", -1
        if len(self.tokens) >= self.max_length:
            return "length", -1
        return "", -1

    def timings(self) -> Timings:
        scheduled = self.arrival_s if self.scheduled_s is None else self.scheduled_s
        ready = self.arrival_s if self.adapter_ready_s is None else self.adapter_ready_s
        first = scheduled if self.first_token_s is None else self.first_token_s
        return Timings(
            queue_s=max(0.0, scheduled - self.arrival_s),
            adapter_load_s=max(0.0, ready - self.arrival_s),
            time_to_first_token_s=max(0.0, first - self.arrival_s),
            num_cached_tokens=self.num_cached,
        )
