"""Tenants' limits in a real deployment: set by the command, met over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

import chorale
from chorale.errors import ResourceExhaustedError
from tests.e2e.conftest import BASE
from tests.helpers import up as helpers
from tests.helpers.up import ChoraleUp

Tenants = Callable[..., str]
NUM_TRIES = 10


@pytest.fixture
def tenants(up: ChoraleUp) -> Tenants:
    def run(*arguments: str) -> str:
        where = (f"--address={up.grpc_address}", f"--data-dir={up.data_dir}")
        done = helpers.chorale("tenants", *arguments, *where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_tenant_meets_its_limit(up: ChoraleUp, client: chorale.Client, tenants: Tenants) -> None:
    shown = tenants("set", "metered", "--requests-per-minute=1", "--burst=2")
    assert shown == "metered: 1 requests per minute, request burst 2\n"
    with openai.OpenAI(
        base_url=f"http://{up.http_address}/v1",
        api_key="none",
        max_retries=0,
        default_headers={"x-chorale-tenant": "metered"},
    ) as sdk:
        assert sdk.completions.create(model=BASE, prompt="4", max_tokens=2).choices
        list(sdk.completions.create(model=BASE, prompt="4", max_tokens=2, stream=True))
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.completions.create(model=BASE, prompt="4", max_tokens=2)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
    with pytest.raises(ResourceExhaustedError) as refused:
        client.complete("4", tenant="metered", max_tokens=2)
    assert refused.value.reason == "TENANT_QUOTA" and refused.value.retry_after_s
    assert client.complete("4", tenant="another", max_tokens=2).token_ids
    assert "0.0" in tenants("show", "metered")

    process = up.part("control-plane")  # what was used is not in its memory
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    until_s = time.monotonic() + 30
    while True:
        answer = httpx.post(
            f"http://{up.http_address}/v1/completions",
            json={"model": BASE, "prompt": "4", "max_tokens": 2},
            headers={"x-chorale-tenant": "metered"},
        )
        if answer.status_code != 503 or time.monotonic() > until_s:
            break
        time.sleep(0.05)
    assert answer.status_code == 429, answer.text
    assert tenants("list").count("metered") == 1
    tenants("remove", "metered")
    assert client.complete("4", tenant="metered", max_tokens=2).token_ids


def test_a_tenant_runs_no_more_at_once(
    up: ChoraleUp, client: chorale.Client, tenants: Tenants
) -> None:
    assert tenants("set", "two", "--max-running=2") == "two: max running 2\n"
    options: dict[str, Any] = {"tenant": "two", "max_tokens": 1000, "ignore_eos": True}
    for _ in range(NUM_TRIES):
        running = [client.generate("4", **options) for _ in range(2)]
        for each in running:
            next(iter(each))
        try:
            client.complete("4", tenant="two", max_tokens=1)
        except ResourceExhaustedError as error:
            assert error.metadata["limit"] == "max_running" and error.retry_after_s == 1.0
            break
        for each in running:  # on a busy machine one had ended by then
            each.close()
        time.sleep(0.5)
    else:
        pytest.fail("a third one was never refused")
    running[0].close()
    for event in running[1]:
        assert event is not None
    until_s = time.monotonic() + 5
    while json.loads(tenants("show", "two", "--json"))["tenant"]["num_running"]:
        assert time.monotonic() < until_s, "data planes tell of ends at once"
    assert client.complete("4", tenant="two", max_tokens=2).token_ids


def test_answers_settle_what_they_were_charged(
    up: ChoraleUp, client: chorale.Client, tenants: Tenants
) -> None:
    tenants("set", "careful", "--tokens-per-minute=1", "--token-burst=5000")

    def left() -> float:
        shown = json.loads(tenants("show", "careful", "--json"))
        return shown["tenant"]["available"]["tokens"]

    done = client.complete("407 =", tenant="careful", max_tokens=400)
    used = done.accepted.num_prompt_tokens + len(done.token_ids)
    assert used < 300
    until_s = time.monotonic() + 10
    while abs(5000 - used - left()) > 3:
        assert time.monotonic() < until_s, (used, left())
        time.sleep(0.1)
