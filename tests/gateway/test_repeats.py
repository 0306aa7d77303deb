"""The log of a gateway whose requests all wait for the same server."""

from __future__ import annotations

import logging

import pytest

from controlplane.gateway.repeats import Repeats


def test_what_is_said_by_every_request_is_logged_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    repeats = Repeats(logging.getLogger("here"))
    for step in range(90):
        repeats.tell("away", now=step * 0.25)
        if step == 3:
            repeats.tell("something else", now=step * 0.25)
    assert caplog.messages == [
        "away",
        "something else",
        "away (and 39 times more before)",
        "away (and 39 times more before)",
    ]


def test_messages_without_end_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    repeats = Repeats(logging.getLogger("here"))
    for index in range(3000):
        repeats.tell(f"no {index}", now=0.0)
    assert len(caplog.messages) == 3000
    assert len(repeats._told) <= 256  # type: ignore[reportPrivateUsage]
