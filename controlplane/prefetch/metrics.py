"""What predictions came to, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from controlplane.prefetch.model import Kind, Score
from controlplane.prefetch.restraint import precision


def families(
    prefix: str, scores: Mapping[Kind, Score], is_active: bool
) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    """The counts are in Redis: those of all control planes together, on each one's page."""
    predictions = CounterMetricFamily(
        f"{prefix}_predictions",
        "By all control planes. outcome: made, and then hit, late or miss.",
        labels=("kind", "outcome"),
    )
    asked_bytes = CounterMetricFamily(
        f"{prefix}_prediction_bytes", "Of the adapters asked for.", labels=("kind",)
    )
    precisions = GaugeMetricFamily(
        f"{prefix}_prediction_precision", "Share that came true, of late.", labels=("kind",)
    )
    for kind, score in scores.items():
        predictions.add_metric((kind, "made"), score.num_made)
        predictions.add_metric((kind, "hit"), score.num_hits)
        predictions.add_metric((kind, "late"), score.num_late)
        predictions.add_metric((kind, "miss"), score.num_misses)
        asked_bytes.add_metric((kind,), score.asked_bytes)
        precisions.add_metric((kind,), precision(score))
    yield predictions
    yield asked_bytes
    yield precisions
    yield GaugeMetricFamily(
        f"{prefix}_predicts", "1 where it is this control plane that does.", value=int(is_active)
    )
