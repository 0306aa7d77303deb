"""What a first token takes here, for the control plane to place and to refuse by."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from functools import cache
from typing import TYPE_CHECKING

from dataplane.cost_model import CostModel, Tier
from dataplane.engine.course import MAX_STARTS, Ahead, Job, StepCosts, expected_waits
from dataplane.engine.growth import Growth
from dataplane.engine.objectives import Objectives
from dataplane.engine.prefix_cache import PrefixCache
from dataplane.engine.sequence import MAX_PRIORITY, Sequence
from dataplane.engine.waiting import Waiting
from dataplane.load_reports import ExpectedWait, Outlook, TierCost

if TYPE_CHECKING:
    from dataplane.lora.supply import AdapterSupply
    from dataplane.pool.pool import PagePool

_INTERVAL_S = 0.5  # heartbeats are further apart
_TIERS: tuple[Tier, ...] = ("host", "disk", "source")


class Outlooks:
    """Reads a scheduler's parts, changes none. Prefix hits of those that wait are not looked for:
    of each prompt the usual share is taken to need computing. Pages of adapters that are yet to be
    brought do not count."""

    def __init__(
        self,
        pool: PagePool,
        supply: AdapterSupply,
        costs: CostModel,
        waiting: Waiting,
        objectives: Objectives,
        growth: Growth,
        prefixes: PrefixCache,
        *,
        max_running: int,
        max_batch_tokens: int,
    ) -> None:
        self._pool = pool
        self._supply = supply
        self._costs = costs
        self._waiting = waiting
        self._objectives = objectives
        self._growth = growth
        self._prefixes = prefixes
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._last: Outlook | None = None
        self._due_s = 0.0

    def recent(self, running: Seq[Sequence], now_s: float) -> Outlook | None:
        """As `now`, worked out a few times a second at most."""
        if now_s >= self._due_s:
            self._last, self._due_s = self.now(running, now_s), now_s + _INTERVAL_S
        return self._last

    def now(self, running: Seq[Sequence], now_s: float) -> Outlook | None:
        """None until both parts of steps were measured."""
        costs, growth = self._costs, self._growth
        if not costs.knows_steps:
            return None
        ahead = self._ahead(running, now_s)
        prefill_step_s, prefill_token_s = costs.prefill_line
        steps = StepCosts(cache(costs.step_s), prefill_step_s, prefill_token_s)
        behind_running_s, waits = expected_waits(ahead, steps)
        fits = max(1, min(self._max_running, ahead.num_pages // ahead.newcomer_pages))
        tokens = growth.usual_prompt * growth.computed_share
        # Short prompts share a step.
        shared_step_s = prefill_step_s * min(1.0, tokens / self._max_batch_tokens)
        fits_s = steps.decode_s(fits)
        request_prefill_s = shared_step_s + prefill_token_s * tokens
        return Outlook(
            behind_running_s=behind_running_s,
            waits=[ExpectedWait(each.level, each.wait_s) for each in waits],
            num_open=_num_open(ahead),
            request_s=request_prefill_s + self._steps_of(growth.usual_output) * fits_s / fits,
            request_prefill_s=request_prefill_s,
            decode_step_s=steps.decode_s(max(1, len(running))),
            prefill_step_s=prefill_step_s,
            prefill_token_s=prefill_token_s,
            max_batch_tokens=self._max_batch_tokens,
            computed_share=growth.computed_share,
            tier_costs=[
                TierCost(tier, *line) for tier in _TIERS if (line := costs.pool_line(tier))
            ],
            cached_for_s=self._prefixes.cached_for_s(now_s),
        )

    def _ahead(self, running: Seq[Sequence], now_s: float) -> Ahead:
        ready_in_s = cache(lambda digest: self._supply.ready_in_s(digest, now_s))
        by_level = self._waiting.by_level()
        waiting: list[Job] = []
        for level, each in by_level[:MAX_STARTS]:
            latest_s = self._objectives.latest_start_s(each, 0.0, 0)
            job = self._job(
                each,
                level=_number(level),
                ready_in_s=ready_in_s(each.queue_key) if each.adapter else 0.0,
                latest_s=None if latest_s is None else latest_s - now_s,
            )
            waiting.append(job)
        uncounted = cache(lambda level: Job(1, 1, 1, level))
        waiting += [uncounted(_number(level)) for level, _ in by_level[MAX_STARTS:]]
        growth = self._growth
        usual_tokens = int(growth.usual_prompt + growth.usual_output / 2)
        return Ahead(
            running=[self._job(each) for each in running],
            waiting=waiting,
            max_running=self._max_running,
            max_batch_tokens=self._max_batch_tokens,
            num_pages=self._pool.num_available + sum(len(each.block_table) for each in running),
            newcomer_pages=max(1, self._pool.blocks_for(usual_tokens)),
        )

    def _job(
        self,
        sequence: Sequence,
        *,
        level: int = 0,
        ready_in_s: float = 0.0,
        latest_s: float | None = None,
    ) -> Job:
        num_more = self._growth.expected_more(sequence)
        num_steps = math.ceil(self._steps_of(num_more))
        num_pending = sequence.num_pending
        if not sequence.block_table:
            num_pending = round(num_pending * self._growth.computed_share)
        # What it has or begins with, and half of what it is expected to grow by.
        num_pages = self._pool.blocks_for(len(sequence.tokens) + num_more // 2)
        return Job(max(1, num_pending), num_steps, num_pages, level, ready_in_s, latest_s)

    def _steps_of(self, num_tokens: float) -> float:
        """In whose time without drafts so many are generated."""
        return num_tokens / self._costs.gain


def _number(level: int | None) -> int:
    return MAX_PRIORITY if level is None else level


def _num_open(ahead: Ahead) -> int:
    """Usual requests that could start at once."""
    jobs = [*ahead.running, *ahead.waiting]
    free_pages = ahead.num_pages - sum(job.num_pages for job in jobs)
    return max(0, min(ahead.max_running - len(jobs), free_pages // ahead.newcomer_pages))
