"""Prometheus' text as a table."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Metrics:
    """`metrics("name", label="value")` is that sample; 0 where there is none."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            assert family.documentation, family.name
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"twice: {key}"
                self.samples[key] = sample.value

    @staticmethod
    def of(registry: CollectorRegistry) -> Metrics:
        return Metrics(generate_latest(registry).decode())

    def __call__(self, name: str, labels: Mapping[str, str] | None = None, **more: str) -> float:
        return self.samples.get((name, frozenset({**(labels or {}), **more}.items())), 0.0)

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def values(self, label: str) -> set[str]:
        """Of a label, in all samples."""
        return {value for _, labels in self.samples for key, value in labels if key == label}
