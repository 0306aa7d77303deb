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
from tests.helpers.waiting import until

Tenants = Callable[..., str]


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
    refused_s = time.monotonic()
    with pytest.raises(ResourceExhaustedError) as refused:
        client.complete("4", tenant="metered", max_tokens=2)
    assert refused.value.reason == "TENANT_QUOTA" and refused.value.retry_after_s
    assert client.complete("4", tenant="another", max_tokens=2).token_ids
    # Less than one then, and one more a minute.
    shown = json.loads(tenants("show", "metered", "--json"))["tenant"]["available"]["requests"]
    assert shown < 1 + (time.monotonic() - refused_s) / 60
    assert "requests now" in tenants("show", "metered")

    process = up.part("control-plane")  # what was used is not in its memory
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    statuses: list[int] = []

    def is_refused() -> bool:
        answer = httpx.post(
            f"http://{up.http_address}/v1/completions",
            json={"model": BASE, "prompt": "4", "max_tokens": 2},
            headers={"x-chorale-tenant": "metered"},
            timeout=60,
        )
        statuses.append(answer.status_code)
        return answer.status_code == 429

    until(is_refused)
    assert set(statuses) <= {200, 429, 503}
    # If it had forgotten, two would be there at once.
    assert statuses.count(200) < 1 + (time.monotonic() - refused_s) / 60
    assert tenants("list").count("metered") == 1
    tenants("remove", "metered")
    assert client.complete("4", tenant="metered", max_tokens=2).token_ids


def test_a_tenant_runs_no_more_at_once(
    up: ChoraleUp, client: chorale.Client, tenants: Tenants
) -> None:
    assert tenants("set", "two", "--max-running=2") == "two: max running 2\n"
    options: dict[str, Any] = {"tenant": "two", "max_tokens": 1000, "ignore_eos": True}
    engine = up.engine()
    engine.suspend()  # or both may have ended before the third one is asked for
    try:
        running = [client.generate("4", **options) for _ in range(2)]
        for each in running:
            assert isinstance(next(each), chorale.Accepted)
        with pytest.raises(ResourceExhaustedError) as refused:
            client.complete("4", tenant="two", max_tokens=1, timeout=60)
    finally:
        engine.resume()
    error = refused.value
    assert error.metadata["limit"] == "max_running" and error.retry_after_s == 1.0
    running[0].close()
    for event in running[1]:
        assert event is not None
    until(lambda: not json.loads(tenants("show", "two", "--json"))["tenant"]["num_running"])
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
    until(lambda: abs(5000 - used - left()) <= 3)
