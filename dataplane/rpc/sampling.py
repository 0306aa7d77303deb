"""From chorale.v1.SamplingParameters to the engine's Sampling, with every bound checked."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from chorale.errors import InvalidArgumentError
from chorale.v1 import inference_pb2
from dataplane.channel import Sampling

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 1 << 18  # the prompt's tokens and those beside them, together
MAX_LOGIT_BIASES = 300
_BIAS = 100.0


class _Bounds(NamedTuple):
    default: float
    low: float
    high: float
    above_low: bool = False  # `low` itself is out of range

    def __str__(self) -> str:
        return f"{'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"

    def hold(self, value: float) -> bool:
        above = value > self.low if self.above_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high


_FLOATS = {
    "temperature": _Bounds(0.0, 0.0, 100.0),
    "top_p": _Bounds(1.0, 0.0, 1.0, above_low=True),
    "min_p": _Bounds(0.0, 0.0, 1.0),
    "repetition_penalty": _Bounds(1.0, 0.0, 100.0, above_low=True),
    "presence_penalty": _Bounds(0.0, -2.0, 2.0),
    "frequency_penalty": _Bounds(0.0, -2.0, 2.0),
}


def to_sampling(
    parameters: inference_pb2.SamplingParameters,
    *,
    num_prompt_tokens: int,
    max_context_tokens: int,
    vocab_size: int,
    grammar: str = "",
) -> Sampling:
    """All fields filled in; a seed is drawn when there is none.

    num_prompt_tokens: less than max_context_tokens, so that one token at least has room.
    grammar: made of the constraint.
    Raises: InvalidArgumentError naming field, value and bound.
    """
    max_tokens = _max_tokens(parameters, num_prompt_tokens, max_context_tokens)
    if parameters.min_tokens > max_tokens:
        raise _out_of_range("min_tokens", parameters.min_tokens, f"[0, max_tokens={max_tokens}]")
    if parameters.logprobs > MAX_LOGPROBS:
        raise _out_of_range("logprobs", parameters.logprobs, f"[0, {MAX_LOGPROBS}]")
    _check_prompt_logprobs(parameters, num_prompt_tokens)
    seed = parameters.seed if parameters.HasField("seed") else int.from_bytes(os.urandom(8))
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=parameters.min_tokens,
        temperature=_float(parameters, "temperature"),
        top_k=parameters.top_k,
        top_p=_float(parameters, "top_p"),
        min_p=_float(parameters, "min_p"),
        repetition_penalty=_float(parameters, "repetition_penalty"),
        presence_penalty=_float(parameters, "presence_penalty"),
        frequency_penalty=_float(parameters, "frequency_penalty"),
        seed=seed,
        stop_token_ids=_stop_token_ids(parameters, vocab_size),
        ignore_eos=parameters.ignore_eos,
        logprobs=parameters.logprobs if parameters.HasField("logprobs") else -1,
        prompt_logprobs=(
            parameters.prompt_logprobs if parameters.HasField("prompt_logprobs") else -1
        ),
        grammar=grammar,
        logit_bias=_logit_bias(parameters, vocab_size),
    )


def stop_strings(parameters: inference_pb2.SamplingParameters) -> tuple[str, ...]:
    """Raises: InvalidArgumentError when there are too many, or one is empty or too long."""
    if len(parameters.stop) > MAX_STOP_STRINGS:
        raise _out_of_range("stop", f"{len(parameters.stop)} strings", f"[0, {MAX_STOP_STRINGS}]")
    for index, text in enumerate(parameters.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise _out_of_range(
                f"stop[{index}]", f"{len(text)} characters", f"[1, {MAX_STOP_CHARACTERS}]"
            )
    return tuple(parameters.stop)


def _max_tokens(
    parameters: inference_pb2.SamplingParameters, num_prompt_tokens: int, max_context_tokens: int
) -> int:
    room = max_context_tokens - num_prompt_tokens
    assert room >= 1
    if not parameters.HasField("max_tokens"):
        return room
    if parameters.max_tokens < 1:
        raise _out_of_range("max_tokens", parameters.max_tokens, f"[1, {room}]")
    if parameters.max_tokens > room and parameters.clamp_max_tokens:
        return room
    if parameters.max_tokens > room:
        raise InvalidArgumentError(
            "CONTEXT_EXCEEDED",
            f"sampling.max_tokens {parameters.max_tokens} and {num_prompt_tokens} prompt tokens "
            f"are more than the context of {max_context_tokens} tokens; ask for at most {room}, "
            "or leave max_tokens out to use what is left",
            metadata={
                "field": "sampling.max_tokens",
                "max_tokens": str(parameters.max_tokens),
                "num_prompt_tokens": str(num_prompt_tokens),
                "max_context_tokens": str(max_context_tokens),
            },
        )
    return parameters.max_tokens


def _check_prompt_logprobs(
    parameters: inference_pb2.SamplingParameters, num_prompt_tokens: int
) -> None:
    asked = parameters.prompt_logprobs
    if asked > MAX_LOGPROBS:
        raise _out_of_range("prompt_logprobs", asked, f"[0, {MAX_LOGPROBS}]")
    size = num_prompt_tokens * (asked + 1)
    if parameters.HasField("prompt_logprobs") and size > MAX_PROMPT_LOGPROBS:
        raise InvalidArgumentError(
            "PROMPT_LOGPROBS_TOO_MANY",
            f"sampling.prompt_logprobs is {asked} for {num_prompt_tokens} prompt tokens, {size}"
            f" log-probabilities together; at most {MAX_PROMPT_LOGPROBS} are told: ask for fewer"
            " beside each token, or of a part of the prompt",
            metadata={
                "field": "sampling.prompt_logprobs",
                "value": str(asked),
                "num_prompt_tokens": str(num_prompt_tokens),
                "limit": str(MAX_PROMPT_LOGPROBS),
            },
        )


def _float(parameters: inference_pb2.SamplingParameters, field: str) -> float:
    bounds = _FLOATS[field]
    if not parameters.HasField(field):
        return bounds.default
    value: float = getattr(parameters, field)
    if not bounds.hold(value):
        raise _out_of_range(field, f"{value:.7g}", str(bounds))
    return value


def _stop_token_ids(
    parameters: inference_pb2.SamplingParameters, vocab_size: int
) -> tuple[int, ...]:
    ids = parameters.stop_token_ids
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _out_of_range("stop_token_ids", f"{len(ids)} ids", f"[0, {MAX_STOP_TOKEN_IDS}]")
    for index, token_id in enumerate(ids):
        if token_id >= vocab_size:
            raise _out_of_range(f"stop_token_ids[{index}]", token_id, f"[0, {vocab_size - 1}]")
    return tuple(ids)


def _logit_bias(
    parameters: inference_pb2.SamplingParameters, vocab_size: int
) -> tuple[tuple[int, float], ...]:
    biases = parameters.logit_bias
    if len(biases) > MAX_LOGIT_BIASES:
        raise _out_of_range("logit_bias", f"{len(biases)} tokens", f"[0, {MAX_LOGIT_BIASES}]")
    for token_id, bias in biases.items():
        if token_id >= vocab_size:
            raise _out_of_range("logit_bias", f"of token {token_id}", f"[0, {vocab_size - 1}]")
        if not -_BIAS <= bias <= _BIAS:
            value = f"{bias:.7g} for token {token_id}"
            raise _out_of_range("logit_bias", value, f"[{-_BIAS:g}, {_BIAS:g}]")
    return tuple(sorted((token_id, bias) for token_id, bias in biases.items() if bias))


def _out_of_range(field: str, value: object, bounds: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "SAMPLING_OUT_OF_RANGE",
        f"sampling.{field} is {value}; it must be in {bounds}",
        metadata={"field": f"sampling.{field}", "value": str(value), "bounds": bounds},
    )
