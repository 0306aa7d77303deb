"""Errors of requests that the engine does not begin, or cannot go on with."""

from __future__ import annotations

from dataplane.engine.sequence import Sequence
from dataplane.errors import NonFiniteOutputError, QueueFullError


def queue_full(max_waiting: int) -> QueueFullError:
    return QueueFullError(
        "QUEUE_FULL",
        f"{max_waiting} requests are waiting here, as many as may; try again later or elsewhere",
        {"max_waiting": str(max_waiting)},
    )


def non_finite(sequence: Sequence) -> NonFiniteOutputError:
    name = sequence.adapter.name if sequence.adapter else "the base model"
    return NonFiniteOutputError(
        "OUTPUT_NOT_FINITE",
        f"{name} gave NaN or infinite logits after {sequence.num_output} tokens: its weights are"
        " too large for this dtype; retrain it, or serve with --dtype float32",
        {"model": name, "num_generated_tokens": str(sequence.num_output)},
    )
