"""Arguments become requests."""

from __future__ import annotations

from typing import Any, cast

import pytest

from chorale import InvalidArgumentError
from chorale.requests import AdmitOptions, GenerateOptions, admit_request, generate_request
from chorale.source_token import source_token_metadata
from chorale.v1 import admission_pb2
from chorale.v1 import inference_pb2 as pb


def test_everything_left_out_stays_left_out() -> None:
    assert generate_request("hi", {}, tenant="t") == pb.GenerateRequest(
        prompt="hi", tenant="t", sampling=pb.SamplingParameters()
    )


def test_zeros_are_not_left_out() -> None:
    options: GenerateOptions = {"temperature": 0.0, "seed": 0, "logprobs": 0, "top_k": 0}
    sampling = generate_request("hi", options, tenant="").sampling
    assert {field.name for field, _ in sampling.ListFields()} == set(options)


def test_every_sampling_field_has_an_option() -> None:
    fields = set(pb.SamplingParameters.DESCRIPTOR.fields_by_name) - {"constraint"}
    assert fields <= set(GenerateOptions.__annotations__)


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"json_schema": {"const": 1}}, pb.Constraint(json_schema='{"const": 1}')),
        ({"json_schema": '{"const": 1}'}, pb.Constraint(json_schema='{"const": 1}')),
        ({"json_schema": True}, pb.Constraint(json_schema="true")),
        ({"json_object": True, "regex": None}, pb.Constraint(json_object=True)),
        ({"regex": "a"}, pb.Constraint(regex="a")),
        ({"choices": ("a", "b")}, pb.Constraint(choices=pb.Choices(texts=["a", "b"]))),
        ({"grammar": "start: x"}, pb.Constraint(grammar="start: x")),
    ],
)
def test_every_kind_of_constraint_has_an_option(options: Any, constraint: pb.Constraint) -> None:
    assert generate_request("x", options, tenant="").sampling.constraint == constraint
    kinds = set(pb.Constraint.DESCRIPTOR.fields_by_name)
    assert kinds <= set(GenerateOptions.__annotations__)


def test_constraints_that_cannot_be_meant() -> None:
    both: Any = {"regex": "a", "choices": ["a"]}
    with pytest.raises(InvalidArgumentError, match="regex and choices"):
        generate_request("x", both, tenant="")
    text: Any = {"choices": "yes"}
    with pytest.raises(InvalidArgumentError, match="choices is a text"):
        generate_request("x", text, tenant="")
    unset: Any = {"json_object": False, "choices": None, "json_schema": None}
    assert not generate_request("x", unset, tenant="").sampling.HasField("constraint")
    biases = generate_request("x", {"logit_bias": {7: -1.5}}, tenant="").sampling.logit_bias
    assert dict(biases) == {7: -1.5}


def test_every_field_of_a_request_has_an_option() -> None:
    fields = set(pb.GenerateRequest.DESCRIPTOR.fields_by_name)
    known = {*GenerateOptions.__annotations__, "prompt", "chat", "sampling"}
    assert fields <= known
    asked = generate_request("x", {"return_prompt_token_ids": True}, tenant="")
    assert asked.return_prompt_token_ids
    assert generate_request("x", {"ttft_path_s": 0.5}, tenant="").ttft_path_s == 0.5


def test_inputs() -> None:
    by_ids = generate_request(None, {"prompt_token_ids": [1, 2]}, tenant="")
    assert list(by_ids.prompt_token_ids.ids) == [1, 2]
    chat = generate_request(None, {"messages": [{"role": "user", "content": "x"}]}, tenant="")
    assert chat.chat.messages[0] == pb.ChatMessage(role="user", content="x")
    answered: Any = {"role": "assistant", "content": "", "refusal": None, "tool_calls": []}
    kept = generate_request(None, {"messages": [answered]}, tenant="").chat.messages[0]
    assert kept == pb.ChatMessage(role="assistant")
    assert generate_request(None, {"prompt_token_ids": []}, tenant="").WhichOneof("input")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (None, {}),
        ("x", {"prompt_token_ids": [1]}),
        (None, {"prompt_token_ids": [-1]}),
        (None, {"messages": [{"role": "user"}]}),
        (None, {"messages": [{"role": "user", "content": None}]}),
        (None, {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}),
        (None, {"messages": "hi"}),
        ("x", {"tools": [{}]}),
        (None, {"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto"}),
        (None, {"messages": [{"role": "user", "content": "x"}], "parallel_tool_calls": False}),
        (None, {"messages": [{"role": "user", "content": "x"}], "tools": [{}], "tool_choice": "a"}),
        (None, {"messages": [{"role": "assistant", "content": 3}]}),
        (None, {"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]}),
        ("x", {"max_tokens": -1}),
        ("x", {"seed": 2**64}),
        ("x", {"temperature": "hot"}),
        ("x", {"stop": [1]}),
        ("\ud800", {}),
    ],
)
def test_what_does_not_fit_is_an_invalid_argument(prompt: str | None, options: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        generate_request(prompt, options, tenant="")


def test_unknown_options_are_refused() -> None:
    options: Any = {"max_new_tokens": 1}
    with pytest.raises(TypeError, match="max_new_tokens"):
        generate_request("x", options, tenant="")


@pytest.mark.parametrize("token", ["a\nb", "caf\u00e9", "two words", "x" * 4097])
def test_tokens_that_no_call_can_carry_are_refused_before_it(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        source_token_metadata(token)
    assert raised.value.reason == "SOURCE_TOKEN_INVALID" and token not in raised.value.message


def test_a_place_is_asked_for_with_what_is_known() -> None:
    assert admit_request("m", {}, tenant="t") == admission_pb2.AdmitRequest(
        model="m", tenant="t", prompt_size=admission_pb2.PromptSize()
    )
    options: AdmitOptions = {
        "excluded_data_plane_ids": ["a"],
        "num_prompt_tokens": 7,
        "num_generated_tokens": 2,
        "ttft_slo": 1.5,
        "ttft_path_s": 0.25,
        "priority": -3,
        "max_tokens": 0,
        "continued_ticket": b"before",
    }
    request = admit_request("m", options, tenant="")
    assert request.prompt_size == admission_pb2.PromptSize(num_tokens=7, num_generated_tokens=2)
    assert request.ttft_slo.ToNanoseconds() == 1_500_000_000
    assert request.ttft_path_s == 0.25
    assert (request.excluded_data_plane_ids, request.priority) == (["a"], -3)
    assert request.HasField("max_tokens") and request.continued_ticket == b"before"
    characters: AdmitOptions = {"num_prompt_characters": 9}
    assert admit_request("m", characters, tenant="").prompt_size.num_characters == 9
    with pytest.raises(InvalidArgumentError):
        admit_request("m", {"num_prompt_tokens": -1}, tenant="")
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        admit_request("m", {"tools": [{}]}, tenant="")
    with pytest.raises(TypeError, match="logprobs"):
        admit_request("m", {"logprobs": 1}, tenant="")  # type: ignore[typeddict-unknown-key]


def test_admit_tells_hashes_of_the_prompt_and_not_the_prompt() -> None:
    messages = [{"role": "user", "content": "secret " * 100}]
    request = admit_request("m", {"messages": messages, "num_generated_tokens": 3}, tenant="")
    assert request.prompt_size.num_characters == 700
    assert request.prompt_size.num_generated_tokens == 3
    assert list(request.prompt_prefixes.lengths) == [256, 512, 700]
    assert b"secret" not in request.SerializeToString()
    by_ids = admit_request("m", {"prompt_token_ids": range(200)}, tenant="")
    assert by_ids.prompt_size.num_tokens == 200
    assert list(by_ids.prompt_prefixes.lengths) == [64, 128, 192]
    assert not admit_request("m", {"prompt": "short"}, tenant="").HasField("prompt_prefixes")
    for wrong in (
        {"prompt": "x", "messages": messages},
        {"prompt": "x", "num_prompt_tokens": 1},
        {"messages": [{"content": "x"}]},
    ):
        with pytest.raises(InvalidArgumentError):
            admit_request("m", cast("AdmitOptions", wrong), tenant="")
