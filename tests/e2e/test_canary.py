"""A canary's life: one alias, two voices, weights that change while it serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import sqrt

import httpx
import pytest

import chorale
from tests.e2e.conftest import expected
from tests.helpers.up import ChoraleUp
from tests.helpers.up import chorale as command
from tests.helpers.waiting import until

USERS = [f"user-{number}" for number in range(1000)]
ALIAS = "e2e-canary"


@pytest.fixture(autouse=True)
def _remove(client: chorale.Client) -> Iterator[None]:
    yield
    client.adapters.remove_alias(ALIAS)


def set_weights(up: ChoraleUp, french: int, roman: int) -> None:
    targets = (f"french@1={french}", f"roman={roman}")
    done = command("adapters", "alias", "set", ALIAS, *targets, "--address", up.grpc_address)
    assert done.returncode == 0, done.stderr


def served(client: chorale.Client) -> dict[str, str]:
    return {user: client.admit(ALIAS, routing_key=user).model for user in USERS}


def is_likely(count: int, share: float) -> bool:
    return abs(count - 1000 * share) <= 4 * sqrt(1000 * share * (1 - share))


def test_a_canary_grows_is_promoted_and_rolled_back(up: ChoraleUp, client: chorale.Client) -> None:
    set_weights(up, 95, 5)
    before = served(client)
    assert is_likely(Counter(before.values())["roman"], 0.05)
    set_weights(up, 90, 10)
    after = served(client)
    moved = [user for user in USERS if before[user] != after[user]]
    assert is_likely(len(moved), 0.05) and {after[user] for user in moved} == {"roman"}
    brave = next(user for user in USERS if before[user] == "roman")
    timid = next(user for user in USERS if after[user] == "french")
    for user, voice in ((brave, "roman"), (timid, "french")):
        for _ in range(2):
            answer = client.complete("407 =", model=ALIAS, routing_key=user)
            assert answer.accepted.model == voice
            assert answer.text.strip() == expected(voice, 407)
    set_weights(up, 0, 1)
    assert client.complete("407 =", model=ALIAS, routing_key=timid).accepted.model == "roman"
    set_weights(up, 1, 0)
    assert client.complete("407 =", model=ALIAS, routing_key=brave).accepted.model == "french"


def test_over_http(up: ChoraleUp, client: chorale.Client) -> None:
    set_weights(up, 50, 50)
    with httpx.Client(base_url=f"http://{up.http_address}", timeout=60) as http:
        body = {"model": ALIAS, "prompt": "407 =", "temperature": 0, "max_tokens": 80}
        for user in USERS[:10]:
            voice = client.admit(ALIAS, routing_key=user).model
            answer = http.post("/v1/completions", json={**body, "user": user})
            assert answer.headers["x-chorale-model"] == f"{voice}@1"
            assert answer.json()["system_fingerprint"] == f"{voice}@1"
            assert answer.json()["choices"][0]["text"].strip() == expected(voice, 407)
        shown = http.get(f"/v1/models/{ALIAS}").json()
        assert [target["weight"] for target in shown["targets"]] == [50, 50]
    rows = {"model": "roman", "version": "1", "outcome": "ok"}
    until(lambda: up.metrics()("chorale_gateway_model_requests_total", rows) >= 1)
