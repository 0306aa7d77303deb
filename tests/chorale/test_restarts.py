from __future__ import annotations

from chorale.restarts import RestartPolicy


def test_quick_losses_wait_longer_and_then_give_up() -> None:
    policy = RestartPolicy(quick_s=30.0, first_delay_s=0.1, max_quick_failures=5)
    delays = [policy.after_end(1.0) for _ in range(5)]
    assert delays[-1] is None
    waits = [delay for delay in delays if delay is not None]
    assert waits == sorted(waits) and len(set(waits)) == 4
    assert max(waits) <= policy.longest_delay_s


def test_a_long_life_clears_the_count() -> None:
    policy = RestartPolicy(quick_s=30.0, first_delay_s=0.1, max_quick_failures=2)
    for _ in range(10):
        assert policy.after_end(0.0) is not None
        assert policy.after_end(policy.quick_s) == policy.first_delay_s
    policy.after_end(0.0)
    assert policy.after_end(0.0) is None
