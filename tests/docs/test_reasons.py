"""Every reason that a user may read is in the documentation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("controlplane", "dataplane", "storage", "protos/chorale")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+")
NAMES_OF_OTHER_THINGS = {  # files whose literals are keys of Redis, or canonical codes
    "controlplane/store/keys.py",
    "controlplane/cli/exit_codes.py",
    "dataplane/error_codes.py",
}
NO_REASONS = {
    # environment variables, and a flag of the operating system
    *("HF_ENDPOINT", "NCCL_SOCKET_IFNAME", "USE_TORCH", "XDG_STATE_HOME", "O_DIRECT"),
    *("SC_PAGE_SIZE", "SC_PHYS_PAGES"),  # what the operating system is asked
    # who answers
    *("CONTROL_PLANE", "DATA_PLANE"),
    # what Lua scripts answer; `refusals` and `fleet` make reasons of them
    *("ALIAS_MIXED", "BASE_CHANGED", "BASE_MODEL", "NO_PREVIOUS", "NUMBER_TAKEN", "SHARED_ALIAS"),
    *("COMPONENT_PRIVATE", "COMPONENT_UNKNOWN"),
    # a value of PEFT's configurations, and the beginnings of enumerations' names
    *("CAUSAL_LM", "MAJORITY_SIGN", "MERGE_STRATEGY"),
    "F8_E4M3",  # a dtype of safetensors
}


def literals() -> Iterator[tuple[str, str]]:
    """(where, text) of all that could be reasons."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            if "_pb2" in path.name or where in NAMES_OF_OTHER_THINGS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield where, node.value


def test_every_reason_is_documented() -> None:
    documented: set[str] = set()
    for page in (ROOT / "docs").glob("*.md"):
        documented.update(UPPER_SNAKE.findall(page.read_text()))
    found = {
        text: where
        for where, text in literals()
        if UPPER_SNAKE.fullmatch(text)
        and not text.startswith("CHORALE_")
        and text not in NO_REASONS
    }
    assert len(found) > 200, "they are written in another way"
    assert {text: where for text, where in found.items() if text not in documented} == {}


def test_every_reason_on_its_page_exists() -> None:
    texts = {text for _, text in literals()}
    listed = re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "errors.md").read_text())
    assert [each for each in listed if each not in texts and not each.startswith("CHORALE_")] == []
