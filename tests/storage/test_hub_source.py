"""The hub's layout, served by a fake hub on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from storage.errors import (
    AdapterTooLargeError,
    PickleRefusedError,
    SourceAccessError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnavailableError,
    SourceUnreadableError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, ModelCard
from storage.limits import AdapterLimits
from storage.sources import Access, SourceOptions, SourceRouter, build_router
from storage.sources.retry import Patience
from tests.helpers.web import Web, serving
from tests.storage.samples import files

SAMPLE, NEWER = files(1), files(2)
OLD, NEW = "a" * 40, "b" * 40
PATIENT = Patience(stall_s=30, total_s=100, max_attempts=2, first_pause_s=0.01)


class Hub:
    """One repository, org/voice, whose main moves from commit to commit."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.info: dict[str, Any] = {
            "id": "org/voice",
            "tags": ["peft", "lora", "base_model:adapter:org/tiny"],
            "cardData": {"base_model": "org/tiny"},
        }

    def commit(self, sha: str, contents: dict[str, bytes], **info: Any) -> None:
        """Puts main at a new commit."""
        siblings: list[dict[str, Any]] = []
        for path, data in contents.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "1" * 40}
            if path.endswith("safetensors"):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 100}
            siblings.append(entry)
            self.web.put(f"/org/voice/resolve/{sha}/{path}", data)
        text = json.dumps({**self.info, "sha": sha, "siblings": siblings, **info}).encode()
        for revision in ("main", sha):
            self.web.put(f"/api/models/org/voice/revision/{revision}", text)

    @property
    def fetched(self) -> list[str]:
        return [r.path for r in self.web.requests if "/resolve/" in r.path]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as web:
        made = Hub(web)
        contents = {CONFIG_NAME: SAMPLE.config, WEIGHTS_NAME: bytes(SAMPLE.weights)}
        made.commit(OLD, {**contents, "README.md": b"#", "optimizer.pt": b"\x80\x02", "x.py": b""})
        yield made


def router(hub: Hub, /, limits: AdapterLimits | None = None, **fields: Any) -> SourceRouter:
    fields = {"allowed": ["hf://org"], "hub": hub.web.url, "patience": PATIENT, **fields}
    return build_router(SourceOptions(**fields), limits or AdapterLimits())


async def fetch(hub: Hub, uri: str = "hf://org/voice", **fields: Any) -> Any:
    access = Access(fields.pop("token", ""))
    made = router(hub, **fields)
    try:
        return await made.fetch(uri, access)
    finally:
        await made.aclose()


async def test_a_revision_is_pinned_and_only_two_files_are_read(hub: Hub) -> None:
    found = await fetch(hub)
    assert (found.config, found.weights) == (SAMPLE.config, SAMPLE.weights)
    assert found.uri == f"hf://org/voice@{OLD}"
    assert found.card == ModelCard(base_model="org/tiny", is_lora=True)
    assert hub.fetched == [f"/org/voice/resolve/{OLD}/{n}" for n in (CONFIG_NAME, WEIGHTS_NAME)]


async def test_main_moves_and_what_was_pinned_does_not(hub: Hub) -> None:
    hub.commit(NEW, {CONFIG_NAME: NEWER.config, WEIGHTS_NAME: bytes(NEWER.weights)})
    assert (await fetch(hub)).weights == NEWER.weights
    pinned = await fetch(hub, f"hf://org/voice@{OLD}")
    assert (pinned.weights, pinned.uri) == (SAMPLE.weights, f"hf://org/voice@{OLD}")


async def test_a_folder_of_a_repository(hub: Hub) -> None:
    contents = {f"a/b/{CONFIG_NAME}": NEWER.config, f"a/b/{WEIGHTS_NAME}": bytes(NEWER.weights)}
    hub.commit(NEW, contents)
    found = await fetch(hub, "hf://org/voice/a/b/")
    assert (found.weights, found.uri) == (NEWER.weights, f"hf://org/voice/a/b@{NEW}")
    with pytest.raises(SourceNotFoundError, match=CONFIG_NAME):
        await fetch(hub)


@pytest.mark.parametrize(
    ("info", "card"),
    [
        ({"cardData": {"base_model": ["org/one"]}}, ModelCard("org/one", True)),
        ({"cardData": {"base_model": ["org/one", "org/two"]}}, ModelCard("org/tiny", True)),
        ({"cardData": None}, ModelCard("org/tiny", True)),
        ({"cardData": None, "tags": ["lora"]}, ModelCard("", True)),
        ({"cardData": None, "tags": ["llama"]}, ModelCard("", False)),
        ({"tags": ["base_model:org/x", "peft"]}, ModelCard("org/tiny", False)),
    ],
)
async def test_the_card(hub: Hub, info: dict[str, Any], card: ModelCard) -> None:
    contents = {CONFIG_NAME: SAMPLE.config, WEIGHTS_NAME: bytes(SAMPLE.weights)}
    hub.commit(NEW, contents, **info)
    assert (await fetch(hub)).card == card


async def test_sizes_are_checked_before_anything_is_read(hub: Hub) -> None:
    with pytest.raises(AdapterTooLargeError):
        await fetch(hub, limits=AdapterLimits(max_weights_bytes=100))
    assert hub.fetched == []


async def test_pickles_and_full_models_are_refused(hub: Hub) -> None:
    hub.commit(NEW, {CONFIG_NAME: SAMPLE.config, "adapter_model.bin": b"\x80\x02"})
    with pytest.raises(PickleRefusedError):
        await fetch(hub)
    hub.commit(NEW, {"model.safetensors": b"x"}, tags=[], cardData={})
    with pytest.raises(SourceNotFoundError, match="does not tag it as a LoRA"):
        await fetch(hub)
    assert hub.fetched == []


async def test_weights_that_are_not_what_the_hub_says(hub: Hub) -> None:
    hub.web.pages[f"/org/voice/resolve/{OLD}/{WEIGHTS_NAME}"].data = bytes(NEWER.weights)
    with pytest.raises(SourceUnavailableError, match="damaged"):
        await fetch(hub)


async def test_a_token_opens_a_private_repository(hub: Hub) -> None:
    for page in hub.web.pages.values():
        page.token = "mine"
    with pytest.raises(SourceAccessError, match="private or does not exist"):
        await fetch(hub)
    assert (await fetch(hub, token="mine")).weights == SAMPLE.weights
    made = router(hub)
    pinned = f"hf://org/voice@{OLD}"
    await made.check(pinned, Access("mine"))
    with pytest.raises(SourceAccessError):
        await made.check(pinned, Access("another's"))
    await made.aclose()


async def test_redirections_leave_the_hub_only_for_public_https(hub: Hub) -> None:
    with serving() as elsewhere:
        elsewhere.put("/w", bytes(SAMPLE.weights))
        page = hub.web.pages[f"/org/voice/resolve/{OLD}/{WEIGHTS_NAME}"]
        page.location = f"{elsewhere.url}/w"
        with pytest.raises(SourceNotAllowedError, match="not https"):
            await fetch(hub)
        page.location = f"https://{elsewhere.host}/w"
        with pytest.raises(SourceNotAllowedError, match="inside this network"):
            await fetch(hub)
        assert elsewhere.requests == []
        hub.web.put("/moved", bytes(SAMPLE.weights))
        page.location = f"{hub.web.url}/moved"
        assert (await fetch(hub)).weights == SAMPLE.weights


async def test_a_redirection_to_no_address_is_typed(hub: Hub) -> None:
    hub.web.pages[f"/org/voice/resolve/{OLD}/{WEIGHTS_NAME}"].location = "https://[::1"
    with pytest.raises(SourceUnreadableError, match="no address"):
        await fetch(hub)


async def test_only_a_yes_of_the_hub_opens_what_is_private(hub: Hub) -> None:
    hub.web.pages[f"/org/voice/resolve/{OLD}/{CONFIG_NAME}"].head_status = 405
    made = router(hub)
    with pytest.raises(SourceUnreadableError, match="status 405"):
        await made.check(f"hf://org/voice@{OLD}", Access("another's"))
    await made.aclose()


@pytest.mark.parametrize(
    "uri",
    [
        "hf://other/voice",
        "hf://org",
        "hf://org/voice/../x",
        "hf://org/voice@../../api",
        "hf://org/voice@a/../b",
        "hf://org/voice@",
        "hf://org/voice?x=1",
        "hf://user:pw@org/voice",
    ],
)
async def test_what_is_no_repository_or_not_allowed(hub: Hub, uri: str) -> None:
    with pytest.raises((SourceUnreadableError, SourceNotAllowedError)):
        await fetch(hub, uri)
    assert hub.web.requests == []


NOT_A_HUB = [
    b"[]",
    b"{",
    b"{}",
    b'{"sha": "main", "siblings": []}',
    b"[" * 100_000,
    b'{"id": "org/voice", "sha": "%b", "siblings": [{"rfilename": "%b", "size": "1"}]}'
    % (b"a" * 40, CONFIG_NAME.encode()),
]


@pytest.mark.parametrize("answer", NOT_A_HUB)
async def test_what_does_not_answer_as_a_hub(hub: Hub, answer: bytes) -> None:
    hub.web.put("/api/models/org/voice/revision/main", answer)
    with pytest.raises(SourceUnreadableError, match="as a hub does"):
        await fetch(hub)


async def test_the_hub_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.web.url)
    made = router(hub, hub="")
    assert (await made.fetch("hf://org/voice")).uri == f"hf://org/voice@{OLD}"
    await made.aclose()


@pytest.mark.parametrize("folder", ["", "/sub", "/with-dash/v1.0"])
@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
async def test_files_are_asked_for_where_the_hub_has_them(
    hub: Hub, folder: str, revision: str
) -> None:
    from huggingface_hub import hf_hub_url

    made = router(hub)
    with pytest.raises(SourceNotFoundError):
        await made.check(f"hf://org/voice{folder}@{revision}", Access("t"))
    await made.aclose()
    url = hf_hub_url(
        "org/voice", CONFIG_NAME, subfolder=folder[1:], revision=revision, endpoint=hub.web.url
    )
    assert hub.web.url + hub.web.requests[-1].path == url


async def test_a_name_that_the_hub_s_own_client_would_not_take_is_only_not_there(hub: Hub) -> None:
    made = router(hub)
    with pytest.raises(SourceNotFoundError):
        await made.check("hf://org/a--b", Access("t"))
    await made.aclose()
