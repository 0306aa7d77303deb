"""What a data plane makes of signals before it has an event loop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from dataplane.signal_exits import SignalExits


@pytest.fixture
def exits() -> Iterator[SignalExits]:
    made = SignalExits()
    before = signal.signal(signal.SIGUSR1, made)
    yield made
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_it_cleanly_and_after_what_must_not_be_torn(exits: SignalExits) -> None:
    done: list[str] = []
    with pytest.raises(SystemExit) as ended, exits.put_off():
        signal.raise_signal(signal.SIGUSR1)
        done.append("started")
    assert done == ["started"] and ended.value.code == 0
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGUSR1)
        done.append("went on")
    assert done == ["started"]


def test_without_a_signal_it_goes_on(exits: SignalExits) -> None:
    with exits.put_off():
        pass
    with pytest.raises(OSError, match="as it was"), exits.put_off():
        raise OSError("as it was")
