"""What a loader is doing and what its loads came to: progress, failures, counts.

Written on the loader's event loop and read from any thread: every reader takes a copy first.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from storage.load_count import LoadCount
from storage.sources import Progress

_RATE_WINDOW_S = 5.0
_KEPT_FAILURES = 64
_MAX_MESSAGE_CHARS = 300
_SCHEME = re.compile(r"([a-z0-9]{1,8}):", re.IGNORECASE)
_SCHEMES = frozenset({"file", "blob", "hf", "http", "https", "s3", "gs", "merge"})
CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class LoadUnderWay:
    """state: "queued" (for its turn, or for another process that fetches the same), "fetching" or
    "building". origin: as in LoadCount. total_bytes: 0 while the source has not told it. began_s:
    on the loader's clock."""

    digest: str
    origin: str
    state: str
    received_bytes: int
    total_bytes: int
    bytes_per_s: float
    began_s: float


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """reason: of the error; "INTERNAL" for one that has none. ended_s: on the loader's clock."""

    digest: str
    origin: str
    reason: str
    message: str
    ended_s: float


@dataclass(slots=True)
class Transfer:
    """How far a fetch has got. clock: seconds."""

    clock: Callable[[], float]
    _files: dict[str, Progress] = field(default_factory=dict[str, Progress])
    _samples: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def note(self, progress: Progress) -> None:
        """A file begun anew, as after its source has changed, counts from its new place."""
        self._files[progress.file] = progress
        now_s, received = self.clock(), self.received_bytes
        if self._samples and received < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now_s, received))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def received_bytes(self) -> int:
        return sum(each.received_bytes for each in list(self._files.values()))

    @property
    def total_bytes(self) -> int:
        """Of the files whose size is known; the small configuration comes first. 0: none is."""
        return sum(each.total_bytes or 0 for each in list(self._files.values()))

    @property
    def bytes_per_s(self) -> float:
        """Over the last seconds; falls towards 0 while nothing comes."""
        samples = list(self._samples)
        if len(samples) < 2:
            return 0.0
        (first_s, first), (_, last) = samples[0], samples[-1]
        return (last - first) / max(self.clock() - first_s, 1e-6)


class LoadHistory:
    """Counts and the last failures."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[tuple[str, str], LoadCount] = {}
        self._failures: deque[LoadFailure] = deque(maxlen=_KEPT_FAILURES)

    def ended(
        self,
        origin: str,
        *,
        size_bytes: int,
        queue_s: float,
        read_s: float,
        parse_s: float,
        build_s: float,
    ) -> None:
        count = self._count(origin, "OK")
        count.size_bytes += size_bytes
        count.queue_s += queue_s
        count.read_s += read_s
        count.parse_s += parse_s
        count.build_s += build_s

    def cancelled(self, origin: str) -> None:
        """Nobody wanted it any more."""
        self._count(origin, CANCELLED)

    def failed(self, digest: str, origin: str, error: BaseException) -> None:
        reason: str = getattr(error, "reason", "INTERNAL")
        self._count(origin, reason)
        message = str(error)[:_MAX_MESSAGE_CHARS] if reason != "INTERNAL" else ""
        self._failures.append(LoadFailure(digest, origin, reason, message, self._clock()))

    def counts(self) -> list[LoadCount]:
        """Copies, in order of origin and outcome."""
        counts = [replace(each) for each in tuple(self._counts.values())]
        return sorted(counts, key=lambda each: (each.origin, each.outcome))

    def failures(self) -> list[LoadFailure]:
        """The last ones, oldest first."""
        return list(self._failures)

    def _count(self, origin: str, outcome: str) -> LoadCount:
        count = self._counts.setdefault((origin, outcome), LoadCount(origin, outcome))
        count.num_loads += 1
        return count


def origin_kind(uri: str) -> str:
    """The scheme of a source's URI, "file" for a path, "other" for any that is unknown."""
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else "file"
    return scheme if scheme in _SCHEMES else "other"
