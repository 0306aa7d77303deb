from __future__ import annotations

from typing import Any

import pytest

from chorale.errors import InvalidArgumentError
from chorale.v1.inference_pb2 import SamplingParameters
from dataplane.channel import Sampling
from dataplane.rpc.sampling import stop_strings, to_sampling


def convert(**fields: Any) -> Sampling:
    return to_sampling(
        SamplingParameters(**fields), num_prompt_tokens=10, max_context_tokens=100, vocab_size=50
    )


def test_defaults_are_those_of_the_contract() -> None:
    assert convert(seed=1) == Sampling(max_tokens=90, seed=1)


def test_every_field_is_taken_over() -> None:
    given: dict[str, Any] = {
        "max_tokens": 20,
        "min_tokens": 20,
        "temperature": 100.0,
        "top_k": 2**32 - 1,
        "top_p": 0.5,
        "min_p": 1.0,
        "repetition_penalty": 100.0,
        "presence_penalty": -2.0,
        "frequency_penalty": 2.0,
        "seed": 2**64 - 1,
        "stop_token_ids": [0, 49],
        "ignore_eos": True,
        "logprobs": 0,
    }
    assert convert(**given) == Sampling(**{**given, "stop_token_ids": (0, 49)})


def test_zeros_that_are_set_are_not_defaults() -> None:
    with pytest.raises(InvalidArgumentError, match=r"max_tokens is 0; it must be in \[1, 90\]"):
        convert(max_tokens=0)
    assert convert(seed=0).seed == 0
    assert convert(temperature=0.0, top_k=0, logprobs=0).logprobs == 0
    assert convert().logprobs == -1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.001),
        ("temperature", 100.5),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.0001),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 100.1),
        ("presence_penalty", -2.01),
        ("presence_penalty", 2.01),
        ("frequency_penalty", -2.01),
        ("frequency_penalty", 2.01),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("min_tokens", 91),
        ("stop_token_ids", [1, 50]),
        ("stop_token_ids", [1] * 65),
        *((name, float("nan")) for name in ("temperature", "top_p", "min_p", "presence_penalty")),
        *((name, float("-inf")) for name in ("repetition_penalty", "frequency_penalty")),
    ],
)
def test_out_of_range_names_field_value_and_bound(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        convert(**{field: value})
    error = raised.value
    assert error.reason == "SAMPLING_OUT_OF_RANGE"
    assert error.metadata["field"].startswith(f"sampling.{field}")
    assert error.metadata["value"] in error.message and error.metadata["bounds"] in error.message


def test_prompt_logprobs_are_bounded_together() -> None:
    def asked(number: int, num_prompt_tokens: int) -> int:
        parameters = SamplingParameters(prompt_logprobs=number)
        return to_sampling(
            parameters,
            num_prompt_tokens=num_prompt_tokens,
            max_context_tokens=1 << 20,
            vocab_size=50,
        ).prompt_logprobs

    assert convert().prompt_logprobs == -1 and asked(0, 1 << 18) == 0 and asked(7, 1 << 15) == 7
    for number, size in ((0, (1 << 18) + 1), (8, 1 << 15)):
        with pytest.raises(InvalidArgumentError) as raised:
            asked(number, size)
        assert raised.value.reason == "PROMPT_LOGPROBS_TOO_MANY"
        assert raised.value.metadata["num_prompt_tokens"] == str(size)


def test_max_tokens_past_the_context_names_both_numbers() -> None:
    assert convert(max_tokens=90).max_tokens == 90
    with pytest.raises(InvalidArgumentError) as raised:
        convert(max_tokens=91)
    assert raised.value.reason == "CONTEXT_EXCEEDED"
    assert raised.value.metadata["max_tokens"] == "91"
    assert raised.value.metadata["num_prompt_tokens"] == "10"


def test_max_tokens_that_may_be_less_are_what_fits() -> None:
    assert convert(max_tokens=91, clamp_max_tokens=True).max_tokens == 90
    assert convert(max_tokens=16, clamp_max_tokens=True).max_tokens == 16
    with pytest.raises(InvalidArgumentError):
        convert(max_tokens=0, clamp_max_tokens=True)


def test_stop_strings_are_bounded() -> None:
    stops = ["x" * 256, "é"] * 8
    assert stop_strings(SamplingParameters(stop=stops)) == tuple(stops)
    for bad in (["x"] * 17, ["x", ""], ["x" * 257]):
        with pytest.raises(InvalidArgumentError) as raised:
            stop_strings(SamplingParameters(stop=bad))
        assert raised.value.metadata["field"].startswith("sampling.stop")
        assert len(raised.value.message) < 200
