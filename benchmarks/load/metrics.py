"""From records to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.load.records import Record

PERCENTILES = (50, 90, 95, 99)


def summary(records: Sequence[Record], *, ttft_objective_s: float | None) -> dict[str, Any]:
    """All figures of one phase.

    output_tokens_per_s: all tokens that came, over the time from the first request sent to the end
    of the last. Latencies are of completed requests. attainment: share of ALL requests that
    completed with their first token within the objective; goodput is those, and their tokens, per
    second.
    """
    completed = [record for record in records if record.completed]
    elapsed_s = _elapsed_s(records)
    num_tokens = sum(record.num_tokens for record in records)
    figures: dict[str, Any] = {
        "num_requests": len(records),
        "num_completed": len(completed),
        "num_failed": len(records) - len(completed),
        "num_short": sum(record.num_tokens != record.num_wanted_tokens for record in completed),
        "num_adapters_used": len({record.adapter for record in records if record.adapter}),
        "num_output_tokens": num_tokens,
        "elapsed_s": elapsed_s,
        "requests_per_s": len(completed) / elapsed_s if elapsed_s else 0.0,
        "output_tokens_per_s": num_tokens / elapsed_s if elapsed_s else 0.0,
        "ttft_s": distribution(record.ttft_s for record in completed),
        "latency_s": distribution(record.latency_s for record in completed),
        "gap_s": distribution(gap for record in completed for gap in record.gaps_s),
        "time_per_token_s": distribution(record.time_per_token_s for record in completed),
        "server_queue_s": distribution(record.queue_s for record in completed),
        "server_adapter_load_s": distribution(record.adapter_load_s for record in completed),
        "errors": dict(Counter(record.error for record in records if record.error)),
        "error_examples": _examples(records),
    }
    if ttft_objective_s is not None:
        met = [
            record
            for record in completed
            if record.ttft_s is not None and record.ttft_s <= ttft_objective_s
        ]
        figures["ttft_objective_s"] = ttft_objective_s
        figures["attainment"] = len(met) / len(records) if records else 0.0
        figures["goodput_requests_per_s"] = len(met) / elapsed_s if elapsed_s else 0.0
        met_tokens = sum(record.num_tokens for record in met)
        figures["goodput_tokens_per_s"] = met_tokens / elapsed_s if elapsed_s else 0.0
    return figures


def distribution(values: Iterable[float | None]) -> dict[str, float] | None:
    """mean, p50 … p99 and max in seconds; None when there is no value."""
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    if not found.size:
        return None
    figures = {"mean": float(found.mean())}
    for percent in PERCENTILES:
        figures[f"p{percent}"] = float(np.percentile(found, percent))
    return {**figures, "max": float(found.max())}


def _elapsed_s(records: Sequence[Record]) -> float:
    if not records:
        return 0.0
    ends = [record.done_s or record.sent_s for record in records]
    ends += [record.token_s[-1] for record in records if record.token_s]
    return max(ends) - min(record.sent_s for record in records)


def _examples(records: Sequence[Record]) -> dict[str, str]:
    """The first message of each reason."""
    examples: dict[str, str] = {}
    for record in records:
        if record.error:
            examples.setdefault(record.error, record.error_message)
    return examples
