"""The control plane's Prometheus metrics: what it decided, and how large registry and fleet are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chorale.request_metrics import Histogram
from controlplane.fleet.fleet import Fleet
from controlplane.placement.placement import Choice
from controlplane.prefetch.demand import Demand
from controlplane.prefetch.metrics import families
from controlplane.prefetch.model import Kind, Score
from controlplane.prefetch.predictor import Predictor
from controlplane.registry.registry import AdapterRegistry
from controlplane.tenants.metrics import TenantAdmissions
from controlplane.tenants.names import DEFAULT_TENANT, is_tenant

_PREFIX = "chorale_control_plane"
_ADMISSION_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class ControlPlaneMetrics(Collector):
    """Belongs to one event loop. `refresh` before `registry` is read."""

    def __init__(
        self,
        adapters: AdapterRegistry,
        fleet: Fleet,
        demand: Demand,
        predictor: Predictor,
    ) -> None:
        self._adapters = adapters
        self._fleet = fleet
        self._demand = demand
        self._predictor = predictor
        self._admissions: Counter[tuple[str, str]] = Counter()
        self._tenants = TenantAdmissions()
        self._prefixes: Counter[str] = Counter()
        self._num_cached_tokens = 0.0
        self._admission_s = Histogram(_ADMISSION_S)
        self._directives: Counter[str] = Counter()
        self._heartbeats: Counter[str] = Counter()
        self._num_adapters = self._num_data_planes = 0
        self._scores: Mapping[Kind, Score] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    @contextmanager
    def admission(self, tenant: str) -> Generator[None]:
        """Around one; how it is left is what was decided. tenant: as the request has it."""
        began_s = time.perf_counter()
        outcome, reason = "admitted", ""
        try:
            yield
        except Exception as error:
            outcome, reason = "refused", getattr(error, "reason", "INTERNAL")
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._admissions[outcome, reason] += 1
            if is_tenant(tenant or DEFAULT_TENANT):
                self._tenants.count(tenant or DEFAULT_TENANT, outcome, reason)
            self._admission_s.observe(time.perf_counter() - began_s)

    def placed(self, choice: Choice) -> None:
        """A request. Counts for prefixes where they were compared."""
        if choice.num_cached is None or choice.most_cached is None:
            return
        outcome = "hit" if choice.num_cached else "elsewhere" if choice.most_cached else "none"
        self._prefixes[outcome] += 1
        self._num_cached_tokens += choice.num_cached

    @contextmanager
    def heartbeat(self) -> Generator[None]:
        """Around one."""
        reason = "INTERNAL"
        try:
            yield
            reason = "OK"
        except Exception as error:
            reason = getattr(error, "reason", reason)
            raise
        finally:
            self._heartbeats[reason] += 1

    def directed(self, action: str) -> None:
        """Data planes were told to do something about an adapter."""
        self._directives[action] += 1

    async def refresh(self) -> None:
        """Raises: StoreUnavailableError."""
        self._num_adapters = (await self._adapters.page(size=1)).total
        self._num_data_planes = len(await self._fleet.data_planes(with_residency=False))
        self._scores = await self._demand.scores()

    def collect(self) -> Iterator[Any]:
        admissions = CounterMetricFamily(
            f"{_PREFIX}_admissions",
            "Calls of Admit. reason: of the refusal.",
            labels=("outcome", "reason"),
        )
        for key, count in self._admissions.items():
            admissions.add_metric(key, count)
        yield admissions
        yield self._tenants.family(f"{_PREFIX}_tenant_admissions")
        prefixes = CounterMetricFamily(
            f"{_PREFIX}_prefix_placements",
            "Requests that told their prompt's prefixes. outcome: hit, placed where one is "
            "expected to be cached; elsewhere, one is, but not where it was placed; none is.",
            labels=("outcome",),
        )
        for outcome, count in self._prefixes.items():
            prefixes.add_metric((outcome,), count)
        yield prefixes
        yield CounterMetricFamily(
            f"{_PREFIX}_expected_cached_tokens",
            "Tokens of prompts that were expected to be cached where they were placed.",
            value=self._num_cached_tokens,
        )
        yield self._admission_s.family(f"{_PREFIX}_admission_seconds", "What one took.")
        directives = CounterMetricFamily(
            f"{_PREFIX}_directives", "Accepted ones.", labels=("action",)
        )
        for action, count in self._directives.items():
            directives.add_metric((action,), count)
        yield directives
        heartbeats = CounterMetricFamily(
            f"{_PREFIX}_heartbeats", "Of data planes.", labels=("outcome",)
        )
        for outcome, count in self._heartbeats.items():
            heartbeats.add_metric((outcome,), count)
        yield heartbeats
        yield GaugeMetricFamily(
            f"{_PREFIX}_registered_adapters", "In the registry.", value=self._num_adapters
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}_data_planes", "With a lease.", value=self._num_data_planes
        )
        yield from families(_PREFIX, self._scores, self._predictor.is_active)
