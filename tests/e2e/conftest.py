"""One real deployment of the demo model for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import chorale
from examples.demo.voices import VOICES, english
from tests.helpers.up import ChoraleUp

ROOT = Path(__file__).parents[2]
ADAPTERS = ROOT / "examples" / "demo" / "adapters"
NAMES = sorted(path.name for path in ADAPTERS.iterdir())
BASE = "chorale-demo"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="package")  # no longer: even idle it takes from the processor
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChoraleUp]:
    """`chorale up` with every demo adapter registered, and room for tests' own adapters."""
    root = tmp_path_factory.mktemp("e2e")
    arguments = ["--adapter-root", str(ADAPTERS), "--adapter-root", str(root)]
    with ChoraleUp(root / "data", *arguments) as running:
        with chorale.Client(running.grpc_address) as client:
            for name in NAMES:
                client.adapters.register(name, str(ADAPTERS / name))
        yield running


@pytest.fixture
def client(up: ChoraleUp) -> Iterator[chorale.Client]:
    with chorale.Client(up.grpc_address) as opened:
        yield opened


@pytest.fixture
def adapter_root(up: ChoraleUp) -> Path:
    """A folder below which the deployment may read adapters."""
    return up.data_dir.parent


def expected(name: str, number: int) -> str:
    """What the voice should answer, as the model writes it."""
    return english(number) if name == BASE else VOICES[name](number)
