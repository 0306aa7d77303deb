"""Log-probabilities in the two shapes that the OpenAI API has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.choices import Choice

# OpenAI's stand-in for a probability of nothing: JSON has no infinity.
_LEAST = -9999.0
_REPLACEMENT = "\ufffd"


def completion_logprobs(
    choice: Choice, positions: Sequence[pb.TokenLogprobs], *, begins_prompt: bool = False
) -> dict[str, Any]:
    """Parallel lists. `text_offset` goes on from where the choice's last call ended. begins_prompt:
    the first position is a prompt's first, which has no log-probability."""
    texts = [position.chosen.text for position in positions]
    logprobs: list[float | None] = [finite(position.chosen.logprob) for position in positions]
    tops: list[dict[str, float] | None] = [_by_text(position) for position in positions]
    offsets: list[int] = []
    for text in texts:
        offsets.append(choice.logprobs_offset)
        choice.logprobs_offset += len(text)
    if begins_prompt:
        logprobs[0] = tops[0] = None
        if choice.echo and not choice.echo.startswith(texts[0]):  # a special token, not in the text
            choice.logprobs_offset -= len(texts[0])
            offsets[1:] = [offset - len(texts[0]) for offset in offsets[1:]]
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def chat_logprobs(positions: Sequence[pb.TokenLogprobs]) -> dict[str, Any]:
    """One object for each position."""
    content = [
        {**_entry(position.chosen), "top_logprobs": [_entry(top) for top in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def _by_text(position: pb.TokenLogprobs) -> dict[str, float]:
    by_text: dict[str, float] = {}
    for candidate in (*position.top, position.chosen):
        by_text.setdefault(candidate.text, finite(candidate.logprob))
    return by_text


def _entry(candidate: pb.TokenLogprob) -> dict[str, Any]:
    # A part of a character is shown as U+FFFD: its true bytes are not known here.
    whole = _REPLACEMENT not in candidate.text
    return {
        "token": candidate.text,
        "logprob": finite(candidate.logprob),
        "bytes": list(candidate.text.encode()) if whole else None,
    }


def finite(logprob: float) -> float:
    """`logprob`, or the least that JSON answers tell."""
    return max(logprob, _LEAST)
