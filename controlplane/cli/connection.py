"""The connection that a command makes to the gateway."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.cli.failures import reported

if TYPE_CHECKING:
    from chorale.client import Client


@contextmanager
def connected(address: str, timeout: float, *, as_json: bool = False) -> Generator[Client]:
    """A client, for the whole of a command: what fails inside is `reported`."""
    with reported(as_json=as_json, address=address):
        # Here, as gRPC takes longer to import than most commands to run.
        from chorale.client import Client

        with Client(address, timeout=timeout) as client:
            yield client
