"""SamplingParameters of a request in OpenAI's terms."""

from __future__ import annotations

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.schema import SampledBody

# OpenAI's default; the contract's own is greedy.
_TEMPERATURE = 1.0
_SAME_NAME = (
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
)


def sampling_of(
    body: SampledBody, *, choice: int, max_tokens: int | None, logprobs: int | None
) -> pb.SamplingParameters:
    """How to sample choice number `choice` of one prompt.

    Choices of one request draw from different seeds: choice 0 from the request's own, so that it is
    what a request for one choice gives.

    Raises: ApiError 400.
    """
    given = {name: getattr(body, name) for name in _SAME_NAME}
    sampling = pb.SamplingParameters(
        **{name: value for name, value in given.items() if value is not None},
        temperature=_TEMPERATURE if body.temperature is None else body.temperature,
        stop=body.stop or (),
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
        constraint=body.constraint,
        logit_bias=body.biases,
    )
    if max_tokens is not None:
        sampling.max_tokens = max_tokens
    if logprobs is not None:
        sampling.logprobs = logprobs
    if body.top_k is not None:
        sampling.top_k = max(body.top_k, 0)  # -1 and 0 both keep all
    if body.seed is not None:
        sampling.seed = (body.seed + choice) % 2**64
    return sampling
