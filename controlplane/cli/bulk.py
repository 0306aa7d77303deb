"""Many registrations at once: a few in parallel, each with its outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from controlplane.cli import output
from controlplane.cli.exit_codes import ExitCode
from controlplane.errors import ControlPlaneError

if TYPE_CHECKING:
    from chorale.errors import ChoraleError

State = Literal["added", "unchanged", "kept", "failed", "untried"]

_MAX_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
# Not of one adapter, but of all: nobody answers, or Redis does not.
_FOR_ALL = frozenset({"UNTYPED", "CONTROL_PLANE_UNREACHABLE", "STORE_UNAVAILABLE"})
_SHOWN_FAILURES = 50


@dataclass(frozen=True, slots=True)
class Done:
    """What a registration came to. "kept": the name was there and was to stay as it is."""

    state: State
    version: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the registration of `source` as `name`; reason and message where it failed."""

    name: str
    source: str
    state: State
    version: int = 0
    reason: str = ""
    message: str = ""

    def view(self) -> dict[str, Any]:
        view: dict[str, Any] = {"name": self.name, "source": self.source, "state": self.state}
        if self.state == "failed":
            return view | {"reason": self.reason, "message": self.message}
        return view | {"version": self.version} if self.version else view


class Bulk:
    """Runs `register(name, source)` for each of `wanted`, `jobs` at a time.

    What may pass is tried again, with pauses. When nobody answers even then, the rest is left
    untried, as it would fail the same way; all of it may be run again.
    """

    def __init__(
        self,
        register: Callable[[str, str], Done],
        *,
        jobs: int,
        ended: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._register = register
        self._jobs = jobs
        self._ended = ended
        self._stop = threading.Event()

    def run(self, wanted: Sequence[tuple[str, str]]) -> list[Outcome]:
        """In the order of `wanted`. Raises: what is no failure of one registration."""
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="register") as pool:
            try:
                names, sources = [name for name, _ in wanted], [source for _, source in wanted]
                return list(pool.map(self._one, names, sources))
            except BaseException:  # KeyboardInterrupt among them
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, name: str, source: str) -> Outcome:
        try:
            outcome = self._tried(name, source)
            self._ended(outcome)
        except BaseException:  # here, as others may have ended before `run` comes to hear of it
            self._stop.set()
            raise
        return outcome

    def _tried(self, name: str, source: str) -> Outcome:
        from chorale.errors import ChoraleError

        for attempt in range(_MAX_ATTEMPTS):
            if self._stop.is_set():
                break
            try:
                done = self._register(name, source)
            except (ChoraleError, ControlPlaneError) as error:
                pause_s = _pause_s(error, attempt)
                if pause_s is None:
                    if error.reason in _FOR_ALL:
                        self._stop.set()
                    return Outcome(name, source, "failed", 0, error.reason, error.message)
                self._stop.wait(pause_s)
            else:
                return Outcome(name, source, done.state, done.version)
        return Outcome(name, source, "untried")


def report(outcomes: Sequence[Outcome], what: str, *, as_json: bool) -> ExitCode:
    """Prints what they came to, failures by name; what to exit with. what: "adapters", plural."""
    counts: dict[str, int] = dict.fromkeys(("added", "unchanged", "kept", "failed", "untried"), 0)
    for outcome in outcomes:
        counts[outcome.state] += 1
    if as_json:
        output.print_json({**counts, "adapters": [outcome.view() for outcome in outcomes]})
    else:
        _print(outcomes, counts, what)
    if counts["untried"]:
        return ExitCode.UNAVAILABLE
    return ExitCode.BLOCKED if counts["failed"] else ExitCode.OK


def _print(outcomes: Sequence[Outcome], counts: Mapping[str, int], what: str) -> None:
    parts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{len(outcomes)} {what}: {parts}" if parts else f"no {what}")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        print()
        output.print_table(
            "failed",
            ("name", "reason", "message"),
            [(each.name, each.reason, each.message) for each in failed[:_SHOWN_FAILURES]],
            empty="",
        )
    if len(failed) > _SHOWN_FAILURES:
        print(f"and {len(failed) - _SHOWN_FAILURES} more; --json tells all")
    if counts["untried"]:
        print("the rest was not tried, as nothing answers; run the same again to go on")


def _pause_s(error: ChoraleError | ControlPlaneError, attempt: int) -> float | None:
    """Before trying again; None: it is no use."""
    may_pass = error.retry_after_s is not None or error.reason == "UNTYPED"
    if not may_pass or attempt + 1 == _MAX_ATTEMPTS:
        return None
    grown = _FIRST_PAUSE_S * 2.0**attempt
    return min(_LONGEST_PAUSE_S, max(grown, error.retry_after_s or 0.0))
