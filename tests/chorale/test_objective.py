"""The objective for the first token, in a request and out of it."""

from __future__ import annotations

import math

import pytest
from google.protobuf.duration_pb2 import Duration

from chorale import InvalidArgumentError
from chorale.objective import MAX_TTFT_SLO_S, ttft_slo_s
from chorale.requests import generate_request
from chorale.v1 import inference_pb2 as pb


def test_left_out_is_none_and_given_is_seconds() -> None:
    assert not generate_request("hi", {"ttft_slo": None}, tenant="").HasField("ttft_slo")
    assert ttft_slo_s(generate_request("hi", {}, tenant="")) is None
    assert ttft_slo_s(generate_request("hi", {"ttft_slo": 1.25}, tenant="")) == 1.25
    assert ttft_slo_s(generate_request("hi", {"ttft_slo": 0.001}, tenant="")) == 0.001


def test_none_once_the_first_token_was_delivered() -> None:
    options: dict[str, object] = {"ttft_slo": 0.5, "generated_token_ids": [7]}
    request = generate_request("hi", options, tenant="")  # type: ignore[arg-type]
    assert request.HasField("ttft_slo") and ttft_slo_s(request) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, "soon"])
def test_what_is_no_duration_is_an_invalid_argument(value: object) -> None:
    with pytest.raises(InvalidArgumentError):
        generate_request("hi", {"ttft_slo": value}, tenant="")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "slo",
    [
        Duration(),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(seconds=1, nanos=-1),
        Duration(nanos=1_000_000_000),
        Duration(seconds=int(MAX_TTFT_SLO_S), nanos=1),
        Duration(seconds=2**62),
    ],
)
@pytest.mark.parametrize("generated", [[], [1]])
def test_out_of_range_is_refused_by_name(slo: Duration, generated: list[int]) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        ttft_slo_s(pb.GenerateRequest(ttft_slo=slo, generated_token_ids=generated))
    assert raised.value.reason == "TTFT_SLO_OUT_OF_RANGE"
    assert raised.value.metadata == {
        "field": "ttft_slo",
        "seconds": str(slo.seconds),
        "nanos": str(slo.nanos),
    }


def test_the_longest_and_the_shortest_are_taken() -> None:
    for slo in (Duration(seconds=int(MAX_TTFT_SLO_S)), Duration(nanos=1)):
        value_s = ttft_slo_s(pb.GenerateRequest(ttft_slo=slo))
        assert value_s == slo.seconds + slo.nanos / 1e9
