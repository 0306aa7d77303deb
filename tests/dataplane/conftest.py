from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataplane.constraints import trials


@pytest.fixture(scope="session", autouse=True)
def patience_with_trials() -> Iterator[None]:
    """Their processes give way to all others. What they may take of the processor is bounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "_START_S", 600.0)
        patch.setattr(trials, "TRIAL_WALL_S", 600.0)
        yield
