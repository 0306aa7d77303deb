"""When pins that wait are tried again."""

from __future__ import annotations

from dataplane.channel import Adapter
from dataplane.lora.pins import HOST_FULL, POOL_FULL, WaitingPins

ONE, TWO = Adapter("1" * 64, "/a", "a@1"), Adapter("2" * 64, "/b", "b@1")


def due(pins: WaitingPins, now_s: float) -> list[str]:
    return [each.adapter.name for each in pins.due(now_s)]


def test_room_is_looked_for_once_a_second() -> None:
    pins = WaitingPins()
    pins.wait(ONE, "pool", POOL_FULL, 100.0, num_pages=3)
    assert due(pins, 100.9) == []
    assert due(pins, 101.0) == ["a@1"]
    assert due(pins, 101.5) == [], "each is looked at once a second, however often it is asked"
    assert due(pins, 102.0) == ["a@1"]
    pins.wait(TWO, "pool", POOL_FULL, 102.5)
    assert due(pins, 103.0) == ["a@1"]
    assert due(pins, 103.5) == ["b@1"], "the later one has a second of its own"
    pins.drop(ONE.digest)
    assert due(pins, 110.0) == ["b@1"] and len(pins) == 1


def test_pauses_after_a_load_double_up_to_five_minutes() -> None:
    pins = WaitingPins()
    now_s, pauses = 0.0, list[float]()
    for _ in range(9):
        pins.wait(ONE, "host", HOST_FULL, now_s)
        began_s = now_s
        while not due(pins, now_s):
            now_s += 1.0
        pauses.append(now_s - began_s)
        pins.tried(ONE.digest, now_s)
        assert due(pins, now_s + 10.0) == [], "its load is under way"
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    pins.wait(ONE, "host", "SOURCE_TIMEOUT", now_s)
    assert due(pins, now_s + 5.0) == ["a@1"], "another reason begins anew"
