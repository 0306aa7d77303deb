from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from typer.testing import CliRunner

from controlplane.cli.app import app
from tests.helpers.scripted_gateway import ScriptedGateway, scripted_gateway

Chorale = Callable[..., Any]


@pytest.fixture
def gateway() -> Generator[ScriptedGateway]:
    with scripted_gateway() as made:
        yield made


@pytest.fixture
def chorale(gateway: ScriptedGateway) -> Chorale:
    """Runs `chorale` with these arguments against `gateway`; stdin by `input`."""

    def run(*arguments: str, **options: Any) -> Any:
        environment = {"CHORALE_ADDRESS": gateway.address, **options.pop("env", {})}
        return CliRunner().invoke(app, list(arguments), env=environment, **options)

    return run
