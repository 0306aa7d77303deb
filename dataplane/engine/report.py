"""What an engine tells of itself, gathered from its parts."""

from __future__ import annotations

from dataplane.channel import Stats
from dataplane.cost_model import CostModel
from dataplane.engine.constrained import Constrained
from dataplane.engine.graphs import GraphReport, StepGraphs
from dataplane.engine.prefix_cache import PrefixCache
from dataplane.engine.scheduler import Scheduler
from dataplane.lora.loader import AdapterLoader
from dataplane.lora.supply import AdapterSupply
from dataplane.pool.pool import PagePool


class Report:
    def __init__(
        self,
        pool: PagePool,
        loader: AdapterLoader,
        supply: AdapterSupply,
        prefixes: PrefixCache,
        costs: CostModel,
        scheduler: Scheduler,
        constrained: Constrained,
        graphs: StepGraphs | None,
    ) -> None:
        self._pool = pool
        self._loader = loader
        self._supply = supply
        self._prefixes = prefixes
        self._costs = costs
        self._scheduler = scheduler
        self._constrained = constrained
        self._graphs = graphs

    @property
    def num_used_pages(self) -> int:
        return self._pool.allocator.num_pages - self._pool.num_available

    def stats(self, num_generated: int, now_s: float) -> Stats:
        """num_generated: tokens since the start."""
        resident = self._supply.resident
        residency = self._loader.residency()
        pool = [each.digest for each in resident]
        faster = set(pool)
        host = [digest for digest in residency.host if digest not in faster]
        faster.update(host)
        allocator = self._pool.allocator
        counters = self._scheduler.counters
        num_running = len(self._scheduler.running)
        prefetches = self._supply.prefetches.report()
        graphs = self._graphs.report if self._graphs else GraphReport()
        constraints = self._constrained.report()
        return Stats(
            num_running=num_running,
            num_waiting=self._scheduler.num_waiting + self._constrained.num_waiting,
            num_pages=allocator.num_pages,
            num_available_pages=self._pool.num_available,
            num_used_pages=self.num_used_pages,
            num_generated_tokens=num_generated,
            pool_digests=sorted(pool),
            host_digests=sorted(host),
            disk_digests=sorted(residency.disk - faster),
            num_cached_blocks=self._prefixes.num_blocks,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_preemptions=counters.num_preemptions,
            num_hopeless=counters.num_hopeless,
            num_drafted_tokens=counters.num_drafted,
            num_accepted_tokens=counters.num_accepted,
            prefill_tokens_per_s=self._costs.prefill_tokens_per_s,
            decode_step_s=self._costs.step_s(max(num_running, 1)),
            num_prefetch_hits=prefetches.hits,
            num_prefetch_late=prefetches.late,
            prefetch_late_s=prefetches.late_s,
            prefetch_wasted_bytes=prefetches.wasted_bytes,
            num_prefetch_failed=prefetches.failed,
            num_prefetch_refused=prefetches.refused,
            num_prefetch_asked=prefetches.asked,
            num_adapter_pages=resident.num_pages,
            num_free_pages=allocator.num_free,
            tiers=[self._supply.pool_tier()],
            num_copies=resident.copier.num_copied,
            copy_s=resident.copier.copied_s,
            waiting_pins=self._supply.waiting_pins(),
            num_waiting_pins=len(self._supply.prefetches.waiting_pins),
            num_graphs=graphs.num_graphs,
            graph_capture_s=graphs.capture_s,
            graph_bytes=graphs.memory_bytes,
            num_graph_steps=self._graphs.num_steps if self._graphs else 0,
            num_grammars=constraints.num_grammars,
            grammar_s=constraints.grammar_s,
            num_masks=constraints.num_masks,
            mask_s=constraints.mask_s,
            outlook=self._scheduler.outlook(now_s),
        )
