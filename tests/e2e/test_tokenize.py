"""Tokens of a text, as the model's own tokenizer cuts it."""

from __future__ import annotations

import httpx
import pytest

import chorale
from tests.e2e.conftest import BASE, NAMES
from tests.helpers.up import ChoraleUp

TEXT = "407 = größe 👩‍👩‍👧"


@pytest.mark.parametrize("model", ["", BASE, NAMES[0]])
def test_they_are_the_prompt_s(client: chorale.Client, model: str) -> None:
    tokens = client.tokenize(TEXT, model=model)
    done = client.complete(TEXT, model=model, max_tokens=1, return_prompt_token_ids=True)
    assert tuple(token.token_id for token in tokens) == done.accepted.prompt_token_ids
    covered = {place for token in tokens for place in range(token.start, token.stop)}
    assert covered >= {place for place, character in enumerate(TEXT) if character != " "}
    bare = client.tokenize(TEXT, model=model, add_special_tokens=False)
    added = len(tokens) - len(bare)
    assert tokens[added:] == bare and added > 0
    assert {(token.start, token.stop) for token in tokens[:added]} == {(0, 0)}


def test_lorax_s_and_a_data_plane_s_answer_is_the_same(
    up: ChoraleUp, client: chorale.Client
) -> None:
    expected = client.tokenize(TEXT)
    response = httpx.post(f"http://{up.http_address}/tokenize", json={"inputs": TEXT}, timeout=60)
    assert response.json() == [
        {"id": token.token_id, "text": token.piece, "start": token.start, "stop": token.stop}
        for token in expected
    ]
    (plane,) = client.data_planes()
    with chorale.Client(plane.endpoint) as direct:
        assert direct.tokenize(TEXT) == expected


def test_too_long_a_text(up: ChoraleUp, client: chorale.Client) -> None:
    with pytest.raises(chorale.InvalidArgumentError) as seen:
        client.tokenize("407 = " * 5000)
    assert seen.value.reason == "TEXT_TOO_LONG" and "1024 tokens" in seen.value.message
    url, body = f"http://{up.http_address}/tokenize", {"inputs": "407 = " * 5000}
    response = httpx.post(url, json=body, timeout=60)
    assert response.status_code == 400 and "1024 tokens" in response.json()["error"]
