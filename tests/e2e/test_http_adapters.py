"""Adapters by vLLM's endpoints: loaded, replaced and unloaded while it serves."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import ADAPTERS, NAMES, expected
from tests.helpers.up import ChoraleUp


@pytest.fixture
def http(up: ChoraleUp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{up.http_address}", timeout=60) as opened:
        yield opened


def load(http: httpx.Client, path: str, **more: object) -> httpx.Response:
    body = {"lora_name": "by-http", "lora_path": path, **more}
    return http.post("/v1/load_lora_adapter", json=body)


def unload(http: httpx.Client) -> httpx.Response:
    return http.post("/v1/unload_lora_adapter", json={"lora_name": "by-http"})


def says(http: httpx.Client) -> str:
    body = {"model": "by-http", "prompt": "407 =", "temperature": 0, "max_tokens": 80}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"].strip()


def test_loaded_replaced_and_unloaded(http: httpx.Client) -> None:
    first, second = (str(ADAPTERS / name) for name in NAMES[:2])
    loaded = load(http, first)
    assert (loaded.status_code, loaded.text) == (
        200,
        "Success: LoRA adapter 'by-http' added successfully.",
    )
    assert says(http) == expected(NAMES[0], 407)
    again = load(http, first)
    assert again.status_code == 400 and "already been loaded" in again.text
    assert says(http) == expected(NAMES[0], 407)
    assert load(http, second, load_inplace=True).status_code == 200
    assert says(http) == expected(NAMES[1], 407)
    assert unload(http).status_code == 200
    assert unload(http).status_code == 404
    gone = http.post("/v1/completions", json={"model": "by-http", "prompt": "407 ="})
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/etc", 403, "root"),
        (str(ADAPTERS / "nobody"), 404, "nobody"),
        ("some-org/some-adapter", 400, "hf://"),
        ("hf://some-org/some-adapter", 403, "--allow-source"),
        (f"blob:{'0' * 64}", 404, ""),
    ],
)
def test_what_cannot_be_loaded_is_told(
    http: httpx.Client, path: str, status: int, said: str
) -> None:
    response = load(http, path)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert said in error["message"]
    if status == 404:
        assert error["param"] == "lora_path"
    assert unload(http).status_code == 404
