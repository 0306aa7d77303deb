"""What requests asked for since demand was written last."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from controlplane.prefetch.limits import DemandLimits

_MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """One new request. digest and name (`name@version`) are empty where it names no adapter."""

    tenant: str
    base_model: str
    digest: str = ""
    name: str = ""


class DemandBatch:
    """Adds up; belongs to one event loop. What is beyond the bound is not counted: it would take
    thousands of adapters asked for within one write."""

    def __init__(self, limits: DemandLimits) -> None:
        self._limits = limits
        self._asked: dict[tuple[str, str, str], int] = {}
        self._visits: list[tuple[str, str]] = []
        self._last: dict[str, str] = {}

    def add(self, data_plane_id: str, asked: Asked) -> None:
        self._count("", f":{asked.base_model}", "")
        if not asked.digest:
            return
        identity = f"{asked.digest}:{asked.base_model}"
        self._count(data_plane_id, identity, asked.name)
        if self._last.get(asked.tenant) != identity and len(self._visits) < _MAX_ENTRIES:
            self._last[asked.tenant] = identity
            self._visits.append((asked.tenant, identity))

    def __bool__(self) -> bool:
        return bool(self._asked)

    def take(self) -> str:
        """For the script, and begins anew; "" when there is nothing."""
        if not self._asked:
            return ""
        asked = [[*key, count] for key, count in self._asked.items()]
        text = msgspec.json.encode(
            {"limits": self._limits, "asked": asked, "visits": self._visits}
        ).decode()
        self._asked, self._visits, self._last = {}, [], {}
        return text

    def _count(self, data_plane_id: str, identity: str, name: str) -> None:
        key = (data_plane_id, identity, name)
        if key in self._asked or len(self._asked) < _MAX_ENTRIES:
            self._asked[key] = self._asked.get(key, 0) + 1
