from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chorale.errors import InvalidArgumentError, UnavailableError
from chorale.v1 import inference_pb2 as pb
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway, generation


def test_prints_the_text_and_a_newline(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = generation([" ahoy", " matey"], held_back="!")
    result = chorale("generate", "--adapter", "pirate", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, " ahoy matey!\n", "")
    (request,) = gateway.requests
    assert (request.model, request.prompt) == ("pirate", "hello")
    assert not request.sampling.ListFields()


def test_every_sampling_option_reaches_the_server(
    chorale: Chorale, gateway: ScriptedGateway
) -> None:
    gateway.answers["Generate"] = generation(["x"])
    options = {
        "max-tokens": 5,
        "min-tokens": 2,
        "temperature": 0.5,
        "top-k": 7,
        "top-p": 0.25,
        "min-p": 0.125,
        "repetition-penalty": 1.5,
        "presence-penalty": -0.5,
        "frequency-penalty": 0.75,
        "seed": 2**64 - 1,
        "logprobs": 3,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    result = chorale(
        "generate", "p", *arguments, "--stop=a", "--stop=b", "--ignore-eos", "--tenant=t",
        "--ttft-slo=1.5", "--routing-key=ada", "--cache-salt=mine", "--json",
    )  # fmt: skip
    assert result.exit_code == 0
    (request,) = gateway.requests
    for name, value in options.items():
        assert getattr(request.sampling, name.replace("-", "_")) == value, name
    assert list(request.sampling.stop) == ["a", "b"]
    assert request.sampling.ignore_eos and request.tenant == "t"
    assert request.ttft_slo.ToMilliseconds() == 1500
    assert (request.routing_key, request.cache_salt) == ("ada", "mine")


@pytest.mark.parametrize(
    ("arguments", "constraint"),
    [
        (["--json-schema={file}"], pb.Constraint(json_schema='{"const": 1}')),
        (['--json-schema={"const": 2}'], pb.Constraint(json_schema='{"const": 2}')),
        (["--json-object"], pb.Constraint(json_object=True)),
        (["--regex=a+"], pb.Constraint(regex="a+")),
        (["--choice=a", "--choice=b"], pb.Constraint(choices=pb.Choices(texts=["a", "b"]))),
        (["--grammar=start: /a/"], pb.Constraint(grammar="start: /a/")),
        (["--grammar={file}"], pb.Constraint(grammar='{"const": 1}')),
    ],
)
def test_constraints_reach_the_server(
    chorale: Chorale,
    gateway: ScriptedGateway,
    tmp_path: Path,
    arguments: list[str],
    constraint: pb.Constraint,
) -> None:
    gateway.answers["Generate"] = generation(["x"])
    file = tmp_path / "what"
    file.write_text('{"const": 1}')
    given = [argument.replace("{file}", str(file)) for argument in arguments]
    result = chorale("generate", "p", *given, "--logit-bias=7=-1.5", "--logit-bias=9=2")
    assert result.exit_code == 0, result.stderr
    (request,) = gateway.requests
    assert request.sampling.constraint == constraint
    assert dict(request.sampling.logit_bias) == {7: -1.5, 9: 2.0}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--json-schema=/nowhere", "/nowhere"),
        ("--grammar=nowhere", "nowhere"),
        ("--logit-bias=7", "'7' is not TOKEN_ID=BIAS"),
        ("--logit-bias=a=1", "TOKEN_ID=BIAS"),
    ],
)
def test_constraints_that_cannot_be_read(
    chorale: Chorale, gateway: ScriptedGateway, argument: str, said: str
) -> None:
    result = chorale("generate", "p", argument)
    assert result.exit_code == 2 and said in result.stderr and not gateway.requests


def test_json_is_the_whole_result(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = generation([" ahoy", " matey"], held_back="!")
    result = chorale("generate", "hello", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "request_id": "r1",
        "model": "pirate",
        "adapter_version": 3,
        "adapter_digest": "d" * 64,
        "data_plane_id": "data-plane-0",
        "seed": 7,
        "text": " ahoy matey!",
        "token_ids": [0, 1],
        "logprobs": [],
        "prompt_logprobs": [],
        "finish_reason": "stop",
        "stop_string": None,
        "stop_token_id": 2,
        "num_prompt_tokens": 4,
        "num_completion_tokens": 2,
        "num_cached_tokens": 1,
        "timings": {
            "queue_s": 0.5,
            "adapter_load_s": 0.0,
            "time_to_first_token_s": 1.0,
            "total_s": 2.0,
        },
    }


def test_prompt_from_stdin(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = generation(["x"])
    assert chorale("generate", "-", input="häß\nlich").exit_code == 0
    assert gateway.requests[0].prompt == "häß\nlich"
    bad = chorale("generate", "-", input=b"\xff\xfe")
    assert bad.exit_code == 2 and "PROMPT_NOT_UTF8" in bad.stderr


def test_chat_sends_a_message(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = generation(["x"])
    assert chorale("generate", "--chat", "hi").exit_code == 0
    (message,) = gateway.requests[0].chat.messages
    assert (message.role, message.content) == ("user", "hi")


def test_an_error_in_mid_stream_stands_below_the_text(
    chorale: Chorale, gateway: ScriptedGateway
) -> None:
    lost = UnavailableError("ENGINE_LOST", "the engine ended", retry_after_s=1.5)
    gateway.answers["Generate"] = generation([" ahoy"], error=lost)
    result = chorale("generate", "hello")
    assert result.exit_code == 5
    assert result.stdout == " ahoy\n"
    assert result.stderr == "error: ENGINE_LOST: the engine ended (try again in 1.5 s)\n"


def test_the_servers_refusal_of_a_value(chorale: Chorale, gateway: ScriptedGateway) -> None:
    gateway.answers["Generate"] = InvalidArgumentError("TOP_P", "top_p is 2: at most 1")
    result = chorale("generate", "hello", "--top-p", "2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: TOP_P: top_p is 2: at most 1\n"


@pytest.mark.parametrize("arguments", [["--top-k", "-1"], ["--seed", "x"], ["--logprobs", "1"]])
def test_usage_errors_call_nobody(
    chorale: Chorale, gateway: ScriptedGateway, arguments: list[str]
) -> None:
    result = chorale("generate", "hello", *arguments)
    assert result.exit_code == 2 and arguments[0] in result.stderr
    assert gateway.requests == []


def test_ctrl_c_cancels_the_call(gateway: ScriptedGateway) -> None:
    """In a process of its own, streaming as it goes."""
    end = threading.Event()

    def endless(request: Any) -> Iterator[Any]:
        del request
        yield from generation(["first"])[:2]
        end.wait(60)

    gateway.answers["Generate"] = endless
    command = [sys.executable, "-m", "controlplane.cli.main", "generate", "hello"]
    environment = {"CHORALE_ADDRESS": gateway.address, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(5) == b"first"  # before the stream has ended
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""
        end.set()
