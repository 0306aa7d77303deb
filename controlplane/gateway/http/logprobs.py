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
    choice: Choice, positions: Sequence[pb.TokenLogprobs], *, of_prompt: bool = False
) -> dict[str, Any]:
    """Parallel lists, which go on from where the choice's last call ended. of_prompt: they are of
    the choice's prompt, whose first token has no log-probability."""
    texts = [position.chosen.text for position in positions]
    logprobs: list[float | None] = [finite(position.chosen.logprob) for position in positions]
    tops: list[dict[str, float] | None] = [_by_text(position) for position in positions]
    if of_prompt and choice.num_prompt_shown == 0:
        logprobs[0] = tops[0] = None
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": [_offset(choice, position, of_prompt) for position in positions],
    }


def _offset(choice: Choice, position: pb.TokenLogprobs, of_prompt: bool) -> int:
    """Into the choice's text, a prompt that came as token ids being shown token by token."""
    is_known = position.HasField("text_offset") and (choice.echo or not of_prompt)
    begin = choice.logprobs_offset
    if is_known:
        begin = position.text_offset + (0 if of_prompt else choice.num_prompt_characters)
    choice.logprobs_offset = begin + len(position.chosen.text)
    if of_prompt:
        choice.num_prompt_characters = len(choice.echo) or choice.logprobs_offset
    return begin


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
