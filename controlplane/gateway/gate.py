"""A bound on what is open at once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from chorale.errors import ResourceExhaustedError


class Gate:
    """Counts what is inside and refuses what is over the limit, at once."""

    def __init__(self, max_inside: int, what: str) -> None:
        self._max_inside = max_inside
        self._what = what
        self._num_inside = 0

    @contextmanager
    def place(self) -> Generator[None]:
        """Holds one place. Raises: ResourceExhaustedError when none is free."""
        if self._num_inside >= self._max_inside:
            raise ResourceExhaustedError(
                "GATEWAY_FULL",
                f"the gateway serves its most of {self._max_inside} {self._what}; try again soon "
                "or at another gateway",
                metadata={"limit": str(self._max_inside)},
                retry_after_s=1.0,
            )
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
