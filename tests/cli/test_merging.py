"""`chorale adapters merge`, and merges that are shown, exported and imported: the real control
plane under the real commands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from chorale import AsyncClient, Client
from chorale.errors import InvalidArgumentError
from controlplane.store.embedded import EmbeddedRedis
from tests.cli.test_backup import (
    Chorale,
    address,
    chorale,
    fill,
    listing,
    lose_everything,
    redis_server,
    redis_url,
)

__all__ = ["address", "chorale", "redis_server", "redis_url"]


@pytest.fixture
def filled(address: str, tmp_path: Path) -> str:
    """`voice` with versions 2 (current) and 4, `team/other`."""
    fill(address, tmp_path)
    return address


def test_merge_and_show(chorale: Chorale, filled: str) -> None:
    done = chorale("adapters", "merge", "mix", "voice=0.75", "team/other=-1", "--label", "k=v")
    assert done.exit_code == 0 and done.stdout.startswith("added mix@1 "), done.output
    again = chorale("adapters", "merge", "mix", "team/other@1=-1.0", "voice@2=0.75")
    assert again.stdout.startswith("was registered before; current now: mix@1 ")
    kept = chorale(
        "adapters", "merge", "mix", "voice=1", "voice@4=2", "--strategy", "dare_ties",
        "--density", "0.5", "--majority-sign", "frequency", "--seed", "9", "--keep-current",
        "--json",
    )  # fmt: skip
    made = json.loads(kept.stdout)
    assert made["created"] and made["adapter"]["current_version"] == 1
    merge = made["version"]["merge"]
    assert [merge[key] for key in ("strategy", "density", "majority_sign", "seed")] == [
        "dare_ties",
        0.5,
        "frequency",
        9,
    ]
    assert {each["adapter"]: each["weight"] for each in merge["components"]} == {
        "voice@2": 1.0,
        "voice@4": 2.0,
    }
    shown = chorale("adapters", "show", "mix").stdout
    assert "dare_ties density=0.5 majority_sign=frequency seed=9" in shown
    assert "0.75 x" in shown and "team/other@1" in shown and "label k" in shown
    plain = json.loads(chorale("adapters", "show", "voice", "--json").stdout)
    assert plain["adapter"]["versions"][0]["merge"] is None
    refused = chorale("adapters", "merge", "mix", "voice=1", "--new")
    assert "ADAPTER_EXISTS" in refused.output and refused.exit_code
    chorale("adapters", "alias", "remove", "canary")
    removed = chorale("adapters", "remove", "voice")
    assert "ADAPTER_MERGED" in removed.output and "mix@" in removed.output


@pytest.mark.parametrize(
    "components",
    [["voice"], ["voice=x"], ["voice="], ["voice=1", "voice=2"], ["=1", "é"]],
)
def test_components_that_cannot_be_meant(
    chorale: Chorale, filled: str, components: list[str]
) -> None:
    done = chorale("adapters", "merge", "mix", *components)
    assert done.exit_code == 2 and "MERGE_COMPONENT_INVALID" in done.output


def test_the_server_refuses_by_field(chorale: Chorale, filled: str) -> None:
    for arguments in (["voice=nan"], ["voice=0"], ["voice=1", "--density", "0.5"]):
        done = chorale("adapters", "merge", "mix", *arguments)
        assert done.exit_code and "MERGE_REFUSED" in done.output, done.output


def test_python_clients(filled: str) -> None:
    with Client(filled) as client:
        made = client.adapters.merge("mix", {"voice": 0.5, "team/other": 1}, strategy="linear")
        assert made.created
        for bad in ({"strategy": "svd"}, {"seed": -1}, {"majority_sign": "most"}):
            with pytest.raises(InvalidArgumentError, match=r"strategy|seed|majority_sign|range"):
                client.adapters.merge("mix", {"voice": 1.0}, **bad)

        with pytest.raises(TypeError, match="weight"):
            client.adapters.merge("mix", {"voice": 1.0}, weight=1)  # type: ignore[call-arg]

    async def again() -> bool:
        async with AsyncClient(filled) as client:
            done = await client.adapters.merge(
                "mix", {"team/other@1": 1.0, "voice@2": 0.5}, strategy="linear"
            )
            return done.created

    assert not asyncio.run(again())


def test_a_lost_registry_comes_back_with_its_merges(
    chorale: Chorale, filled: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    """Also merges that stand before what they are made of, by name and by version."""
    with Client(filled) as client:
        client.adapters.merge("a-mix", {"voice": 1.0, "team/other": 0.5}, labels={"x": "y"})
        client.adapters.merge("voice", {"voice@2": 2.0})
        client.adapters.merge("voice", {"voice@4": 3.0}, keep_current=True)
        client.adapters.set_alias("mixed", targets={"a-mix": 1, "voice@6": 2})
    before, file = listing(chorale), tmp_path / "registry.jsonl"
    chorale("adapters", "export", str(file))
    assert "6 unchanged" in chorale("adapters", "import", str(file)).stdout
    lose_everything(redis_server)
    done = chorale("adapters", "import", str(file))
    assert (done.exit_code, done.stdout) == (0, "6 adapters and aliases: 6 added\n")
    assert listing(chorale) == before
    removed = chorale("adapters", "remove", "team/other")
    assert "ALIAS_SHARED" in removed.output  # what is looked at first
    with Client(filled) as client:
        client.adapters.remove_alias("canary")
    assert "ADAPTER_MERGED" in chorale("adapters", "remove", "team/other").output


def test_a_merge_is_not_imported_without_what_it_is_made_of(
    chorale: Chorale, filled: str, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    with Client(filled) as client:
        client.adapters.merge("a-mix", {"voice@4": 1.0})
        client.adapters.merge("b-mix", {"team/other": 1.0})
    file = tmp_path / "registry.jsonl"
    chorale("adapters", "export", str(file))
    lose_everything(redis_server)
    kept = [line for line in file.read_text().splitlines(True) if '"name":"voice"' not in line]
    file.write_text("".join(kept))
    done = chorale("adapters", "import", str(file))
    assert done.exit_code == 4 and "MERGE_COMPONENT_UNKNOWN" in done.stdout, done.stdout
    assert {each["name"] for each in listing(chorale)} == {"b-mix", "team/other"}
