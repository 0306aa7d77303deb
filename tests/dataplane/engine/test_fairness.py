"""Counters of service."""

from __future__ import annotations

import random

from dataplane.engine.fairness import LeastServed, VirtualTokens


def test_the_least_served_is_first_however_charges_come() -> None:
    generator = random.Random(5)
    tokens = VirtualTokens()
    order = LeastServed(tokens)
    waiting: set[str] = set()
    for _ in range(3000):
        key = f"k{generator.randrange(12)}"
        match generator.randrange(4):
            case 0 if key not in waiting:
                tokens.enter(key)
                order.add(key)
                waiting.add(key)
            case 1 if key in waiting:
                order.discard(key)
                tokens.leave(key)
                waiting.discard(key)
            case _:
                tokens.charge(key, generator.random() * 10)
        least = order.least()
        if waiting:
            assert least is not None
            assert tokens.served(least) == min(tokens.served(each) for each in waiting)
            assert tokens.floor() == tokens.served(least)
        else:
            assert least is None


def test_a_newcomer_is_lifted_and_a_debtor_is_not_forgiven() -> None:
    tokens = VirtualTokens()
    tokens.enter("a")
    tokens.charge("a", 100.0)
    tokens.enter("new")
    assert tokens.served("new") == 100.0
    tokens.charge("new", 50.0)
    tokens.leave("new")
    tokens.enter("new")  # at 150, which is above the floor of 100
    assert tokens.served("new") == 150.0


def test_when_nobody_waits_the_next_begins_where_the_last_left() -> None:
    tokens = VirtualTokens()
    tokens.enter("a")
    tokens.charge("a", 70.0)
    tokens.leave("a")
    tokens.enter("b")
    assert tokens.served("b") == 70.0


def test_counters_of_the_absent_are_forgotten_once_they_say_nothing() -> None:
    tokens = VirtualTokens()
    tokens.enter("steady")
    tokens.enter("debtor")
    tokens.charge("debtor", 1e6)
    tokens.leave("debtor")
    for number in range(5000):
        tokens.enter(f"once{number}")
        tokens.charge(f"once{number}", 1.0)
        tokens.leave(f"once{number}")
        tokens.charge("steady", 2.0)
    assert len(tokens.keys()) < 1500
    tokens.enter("debtor")
    assert tokens.served("debtor") == 1e6


def test_thousands_that_are_ahead_are_not_gone_through_at_each_end() -> None:
    tokens = VirtualTokens()
    tokens.enter("steady")
    gone_through, counters = 0, tokens._served
    for number in range(8000):
        tokens.enter(f"ahead{number}")
        tokens.charge(f"ahead{number}", 10.0)
        tokens.leave(f"ahead{number}")
        gone_through += tokens._served is not counters
        counters = tokens._served
    assert len(tokens.keys()) == 8001, "each says something"
    assert 1 <= gone_through < 6
    tokens.charge("steady", 100.0)
    for number in range(20000):
        tokens.enter("steady2")
        tokens.leave("steady2")
        tokens.enter(f"even{number}")
        tokens.leave(f"even{number}")
    assert len(tokens.keys()) < 20000, "and is forgotten once it does not"
