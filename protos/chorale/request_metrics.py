"""Metrics of generations, the same on a gateway and on a data plane.

Counted by hand on the event loop and turned into Prometheus' families when somebody asks: an event
of a stream costs a few additions and no lock. Not for clients: it needs prometheus_client.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from chorale.errors import CancelledError
from chorale.v1 import inference_pb2

MAX_MODELS = 256
OTHER = "(other)"
_MAX_REASONS = 64
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAP_S = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_KINDS = ("prompt", "completion", "cached")


ModelKey = tuple[str, str]
"""An adapter's name and version, or a base model's name and ""."""


class Histogram:
    """bounds: upper ones, ascending; what is above the last counts under +Inf."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, help_text: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, help_text)
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
        family.add_metric([], buckets, self._sum)
        return family


class _Model:
    """Of one version of an adapter, or of a base model."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.num_first = 0
        self.first_token_s = 0.0
        self.load_wait_s = 0.0

    def take(self, other: _Model) -> None:
        self.outcomes += other.outcomes
        self.tokens += other.tokens
        self.num_first += other.num_first
        self.first_token_s += other.first_token_s
        self.load_wait_s += other.load_wait_s


class RequestMetrics(Collector):
    """prefix: of the names, as "chorale_gateway". max_models: versions of adapters with rows of
    their own; when there are more, the one that was asked for longest ago goes into the row
    "(other)"."""

    def __init__(
        self,
        prefix: str,
        *,
        max_models: int = MAX_MODELS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix = prefix
        self._max_models = max_models
        self.clock = clock
        self.num_running = 0
        self._ended: Counter[tuple[str, str]] = Counter()
        self._models: OrderedDict[ModelKey, _Model] = OrderedDict()
        self._others = _Model()
        self.first_token = Histogram(_FIRST_TOKEN_S)
        self.gap = Histogram(_GAP_S)
        self.queue = Histogram(_WAIT_S)
        self.load_wait = Histogram(_WAIT_S)

    def request(self) -> RequestWatch:
        """Watches one generation, as a context manager around it."""
        return RequestWatch(self)

    def ended(self, outcome: str, reason: str, model: ModelKey | None) -> None:
        """A generation has ended; model: None when it was never accepted."""
        key = (outcome, reason)
        if key not in self._ended and len(self._ended) >= _MAX_REASONS:
            key = (outcome, OTHER)
        self._ended[key] += 1
        if model is not None:
            self.model(model).outcomes[outcome] += 1

    def model(self, key: ModelKey) -> _Model:
        found = self._models.get(key)
        if found is None:
            while len(self._models) >= self._max_models:
                self._others.take(self._models.popitem(last=False)[1])
            found = self._models[key] = _Model()
        else:
            self._models.move_to_end(key)
        return found

    def collect(self) -> Iterator[Any]:
        prefix = self._prefix
        yield GaugeMetricFamily(
            f"{prefix}_requests_running", "Generations under way.", value=self.num_running
        )
        requests = CounterMetricFamily(
            f"{prefix}_requests",
            "Generations that have ended. reason: of the error, empty when there was none.",
            labels=("outcome", "reason"),
        )
        for (outcome, reason), count in self._ended.items():
            requests.add_metric((outcome, reason), count)
        yield requests
        yield self.first_token.family(
            f"{prefix}_time_to_first_token_seconds", "From the request to its first token."
        )
        yield self.gap.family(
            f"{prefix}_inter_token_seconds",
            "Between two messages with tokens of one stream; a message holds mostly one.",
        )
        yield self.queue.family(
            f"{prefix}_queue_seconds", "From arrival at the data plane to the first step."
        )
        yield self.load_wait.family(
            f"{prefix}_adapter_wait_seconds",
            "Of the queue: waiting for the adapter; 0 where it was in the pool.",
        )
        yield from self._by_model()

    def _by_model(self) -> Iterator[Any]:
        prefix = self._prefix
        outcomes = CounterMetricFamily(
            f"{prefix}_model_requests",
            "Accepted generations.",
            labels=("model", "version", "outcome"),
        )
        tokens = CounterMetricFamily(
            f"{prefix}_model_tokens",
            "Tokens taken and sent; cached ones are prompt tokens that needed no computing.",
            labels=("model", "version", "kind"),
        )
        first = SummaryMetricFamily(
            f"{prefix}_model_time_to_first_token_seconds",
            "From the request to its first token.",
            labels=("model", "version"),
        )
        waits = CounterMetricFamily(
            f"{prefix}_model_adapter_wait_seconds",
            "Waiting for the adapter, all together.",
            labels=("model", "version"),
        )
        rows = list(self._models.items())
        if self._others.outcomes or self._others.tokens:
            rows.append(((OTHER, ""), self._others))
        for key, model in rows:
            for outcome, count in model.outcomes.items():
                outcomes.add_metric((*key, outcome), count)
            for kind in _TOKEN_KINDS:
                tokens.add_metric((*key, kind), model.tokens[kind])
            first.add_metric(key, model.num_first, model.first_token_s)
            waits.add_metric(key, model.load_wait_s)
        yield from (outcomes, tokens, first, waits)


class RequestWatch:
    """`note` every event on its way out. How the block is left is the outcome: "ok" after
    `finished`, "error" with the error's reason, else "cancelled"."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics
        self._began_s = self._last_s = metrics.clock()
        self._model: ModelKey | None = None
        self._has_token = self._finished = False
        self._num_tokens = 0

    def note(self, event: inference_pb2.GenerateResponse) -> inference_pb2.GenerateResponse:
        """Counts it and gives it back."""
        if event.HasField("tokens"):
            if event.tokens.token_ids:  # else of the prompt
                self._tokens(len(event.tokens.token_ids))
        elif event.HasField("accepted"):
            version = event.accepted.adapter_version
            self._model = event.accepted.model, str(version) if version else ""
            tokens = self._metrics.model(self._model).tokens
            tokens["prompt"] += event.accepted.num_prompt_tokens
        else:
            self._finish(event.finished)
        return event

    def _tokens(self, number: int) -> None:
        now_s = self._metrics.clock()
        if self._has_token:
            self._metrics.gap.observe(now_s - self._last_s)
        else:
            self._first(now_s)
        self._last_s = now_s
        self._num_tokens += number

    def __enter__(self) -> Self:
        self._metrics.num_running += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.num_running -= 1
        outcome, reason = "cancelled", ""
        if self._finished:
            outcome = "ok"
        elif error is not None and not isinstance(
            error, (CancelledError, asyncio.CancelledError, GeneratorExit)
        ):
            outcome, reason = "error", getattr(error, "reason", "INTERNAL")
        self._metrics.ended(outcome, reason, self._model)
        if self._model is not None:
            self._metrics.model(self._model).tokens["completion"] += self._num_tokens

    def _first(self, now_s: float) -> None:
        self._has_token = True
        took_s = now_s - self._began_s
        self._metrics.first_token.observe(took_s)
        if self._model is None:
            return
        model = self._metrics.model(self._model)
        model.num_first += 1
        model.first_token_s += took_s

    def _finish(self, finished: inference_pb2.Finished) -> None:
        self._finished = True
        timings = finished.timings
        self._metrics.queue.observe(timings.queue_s)
        self._metrics.load_wait.observe(timings.adapter_load_s)
        if self._model is None:
            return
        model = self._metrics.model(self._model)
        model.load_wait_s += timings.adapter_load_s
        model.tokens["cached"] += finished.usage.num_cached_tokens
