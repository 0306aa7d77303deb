"""What was decided about whose requests, as Prometheus metrics."""

from __future__ import annotations

from collections import Counter, OrderedDict

from prometheus_client.core import CounterMetricFamily

from chorale.request_metrics import OTHER

MAX_ROWS = 256


class TenantAdmissions:
    """Counts by tenant and outcome. max_rows: tenants with rows of their own; when there are more,
    the one that asked longest ago goes into the rows of "(other)"."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._counts: OrderedDict[str, Counter[str]] = OrderedDict()
        self._others: Counter[str] = Counter()

    def count(self, tenant: str, outcome: str, reason: str) -> None:
        """tenant: a valid name. reason: of a refusal; those on account of the tenant's limits have
        an outcome of their own."""
        counts = self._others if tenant == OTHER else self._counts.get(tenant)
        if counts is None:
            while len(self._counts) >= self._max_rows:
                self._others += self._counts.popitem(last=False)[1]
            counts = self._counts[tenant] = Counter()
        elif tenant != OTHER:
            self._counts.move_to_end(tenant)
        counts["over_quota" if reason == "TENANT_QUOTA" else outcome] += 1

    def family(self, name: str) -> CounterMetricFamily:
        family = CounterMetricFamily(
            name,
            "Calls of Admit. outcome: admitted, over_quota (the tenant's limits), refused (all "
            "else) or cancelled.",
            labels=("tenant", "outcome"),
        )
        rows = [*self._counts.items(), *([(OTHER, self._others)] if self._others else ())]
        for tenant, counts in rows:
            for outcome, count in counts.items():
                family.add_metric((tenant, outcome), count)
        return family
