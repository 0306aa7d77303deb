"""What the documentation names is there: options of commands, files, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from controlplane.cli.app import app
from dataplane.main import app as data_plane

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("", "controlplane", "dataplane", "kernels", "protos/chorale", "storage")


def commands() -> dict[str, set[str]]:
    """The options of each command, as "adapters alias set"."""
    found: dict[str, set[str]] = {}

    def visit(command: Any, path: tuple[str, ...]) -> None:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                visit(each, (*path, name))
            return
        options = (o for each in command.params for o in (*each.opts, *each.secondary_opts))
        found[" ".join(path)] = {*options, "--help"}

    visit(typer.main.get_command(app), ())
    visit(typer.main.get_command(data_plane), ("data-plane",))
    return found


def headings(page: Path) -> set[str]:
    """As links spell them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def calls(page: Path) -> Iterator[tuple[str, str]]:
    """What follows `chorale` in commands, up to the next command: words, then the rest."""
    for found in re.finditer(r"\bchorale ((?:[a-z-]+ ?)+)([^`;|\n]*)", page.read_text()):
        yield found[1], found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_commands_exist(page: Path) -> None:
    known, missing = commands(), list[str]()
    for words, rest in calls(page):
        parts = words.split()
        names = (" ".join(parts[:length]) for length in (3, 2, 1))
        name = next((each for each in names if each in known), None)
        if name is not None:
            options = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", rest)
            missing += [f"{name} {each}" for each in options if each not in known[name]]
    assert missing == []


def test_the_pages_have_commands() -> None:
    named = {words.strip() for page in PAGES for words, _ in calls(page)}
    assert len(named & set(commands())) > 20, "they are written in another way"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        if name.startswith("http"):
            continue
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in headings(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+\w+\.(?:py|proto|lua|yaml))`", page.read_text()))
    others = {"vllm/envs.py"}
    ours = named - others
    assert {each for each in ours if not any((ROOT / r / each).exists() for r in ROOMS)} == set()
