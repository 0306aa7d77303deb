from __future__ import annotations

from controlplane.gateway.recovery import MAX_EXCLUDED, Recovery, RecoveryLimits


def test_lost_streams_are_counted_over_the_whole_request() -> None:
    recovery = Recovery(RecoveryLimits(max_lost_streams=2))
    answers = []
    for name in "abc":
        recovery.accepted()
        answers.append(recovery.lost(name, was_accepted=True))
    assert answers == [True, True, False]
    assert list(recovery.excluded) == ["a", "b", "c"]


def test_failures_are_counted_in_a_row() -> None:
    recovery = Recovery(RecoveryLimits(max_failures=1))
    assert recovery.lost("a", was_accepted=False)
    recovery.accepted()
    assert recovery.lost("a", was_accepted=False)
    assert not recovery.lost("a", was_accepted=False)


def test_delays_grow_keep_retry_info_and_are_bounded() -> None:
    recovery = Recovery(RecoveryLimits(max_failures=4, first_delay_s=0.1, longest_delay_s=0.5))
    delays = [recovery.no_place(hint) for hint in (None, 0.3, None, 60.0, None)]
    assert delays == [0.2, 0.4, 0.5, 0.5, None]


def test_nothing_is_excluded_for_ever() -> None:
    recovery = Recovery(RecoveryLimits())
    recovery.lost("a", was_accepted=False)
    recovery.no_place(None)
    assert not recovery.excluded


def test_exclusions_keep_to_what_admission_takes() -> None:
    recovery = Recovery(RecoveryLimits(max_failures=1000))
    for i in range(MAX_EXCLUDED + 5):
        recovery.lost(f"dp{i}", was_accepted=False)
    assert len(recovery.excluded) == MAX_EXCLUDED
    assert recovery.excluded[-1] == f"dp{MAX_EXCLUDED + 4}"


def test_a_ticket_is_renewed_once_for_each_stream() -> None:
    recovery = Recovery(RecoveryLimits())
    assert recovery.ticket_refused() and not recovery.ticket_refused()
    recovery.accepted()
    assert recovery.ticket_refused()
