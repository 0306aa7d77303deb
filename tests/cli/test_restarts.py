from __future__ import annotations

from controlplane.cli.supervisor.restarts import MAX_DELAY_S, MAX_QUICK_FAILURES, RestartPolicy


def test_waits_longer_after_each_quick_failure_then_gives_up() -> None:
    policy = RestartPolicy()
    delays = [policy.after_exit(0.1) for _ in range(MAX_QUICK_FAILURES)]
    assert delays[-1] is None
    given = [delay for delay in delays[:-1] if delay is not None]
    assert len(given) == MAX_QUICK_FAILURES - 1
    assert given == sorted(given)
    assert 0 < given[0] < given[-1] <= MAX_DELAY_S


def test_a_long_life_clears_the_count() -> None:
    policy = RestartPolicy()
    for _ in range(3 * MAX_QUICK_FAILURES):
        assert policy.after_exit(0.1) is not None
        assert policy.after_exit(60.0) is not None
