"""Asking a data plane itself, at the address that it announced."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.cli.connection import FLEET, way_to
from controlplane.cli.errors import DataPlaneSilentError

if TYPE_CHECKING:
    from chorale.client import Client


@contextmanager
def asked(data_plane_id: str, endpoint: str) -> Generator[None]:
    """Around a call: a failure to reach it names this data plane, not the gateway.

    Raises: DataPlaneSilentError in place of UnavailableError and DeadlineExceededError.
    """
    from chorale.errors import DeadlineExceededError, UnavailableError
    from chorale.fleet_tls import way_out

    try:
        yield
    except (UnavailableError, DeadlineExceededError) as error:
        why = error.message[:200] + way_out(error.message)
        raise DataPlaneSilentError(data_plane_id, endpoint, why) from error


@contextmanager
def connected_to(data_plane_id: str, endpoint: str, timeout: float) -> Generator[Client]:
    """A client of it. Raises: as `asked`."""
    from chorale.client import Client

    way = way_to(FLEET + endpoint)
    with (
        asked(data_plane_id, endpoint),
        Client(
            way.address,
            timeout=timeout,
            credentials=way.credentials,
            server_name=way.server_name,
        ) as client,
    ):
        yield client
