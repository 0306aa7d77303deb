"""A pool's pages as a few lines of characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = 64
MAX_ROWS = 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIGNS: Mapping[str, str] = {"free": ".", "sequence": "#", "prefix": "+", "unknown": "?"}


@dataclass(frozen=True, slots=True)
class Holding:
    """What one adapter holds. num_runs: 1 when its pages are neighbours."""

    letter: str
    digest: str
    num_pages: int
    num_runs: int


@dataclass(frozen=True, slots=True)
class PoolMap:
    """rows: one character for every `pages_per_cell` pages, that of the owner who has most of them.

    pages, owners: by kind. holdings: the adapters, in order of their first page; the 27th shares
    its letter with the first.
    """

    rows: Sequence[str]
    pages_per_cell: int
    pages: Mapping[str, int]
    owners: Mapping[str, int]
    holdings: Sequence[Holding]


def pool_map(view: Mapping[str, Any]) -> PoolMap:
    """view: as views.pool makes it."""
    runs: Sequence[Mapping[str, Any]] = view["runs"]
    pages, owner_pages, owner_runs = Counter[str](), Counter[str](), Counter[str]()
    owners: dict[str, set[str]] = {}
    for run in runs:
        pages[run["owner_kind"]] += run["num_pages"]
        owners.setdefault(run["owner_kind"], set()).add(run["owner_id"])
        if run["owner_kind"] == "adapter":
            owner_pages[run["owner_id"]] += run["num_pages"]
            owner_runs[run["owner_id"]] += 1
    letters = {digest: LETTERS[i % len(LETTERS)] for i, digest in enumerate(owner_pages)}
    per_cell = max(1, -(-view["num_pages"] // (COLUMNS * MAX_ROWS)))
    cells = "".join(_cells(runs, letters, per_cell))
    return PoolMap(
        rows=[cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)],
        pages_per_cell=per_cell,
        pages=pages,
        owners={kind: len(ids) for kind, ids in owners.items()},
        holdings=[
            Holding(letters[digest], digest, owner_pages[digest], owner_runs[digest])
            for digest in owner_pages
        ],
    )


def _cells(
    runs: Iterable[Mapping[str, Any]], letters: Mapping[str, str], per_cell: int
) -> Iterator[str]:
    cell, room = Counter[str](), per_cell
    for run in runs:
        sign = letters.get(run["owner_id"], "?")
        if run["owner_kind"] != "adapter":
            sign = SIGNS.get(run["owner_kind"], "?")
        left: int = run["num_pages"]
        while left:
            taken = min(left, room)
            cell[sign] += taken
            left -= taken
            room -= taken
            if not room:
                yield cell.most_common(1)[0][0]
                cell, room = Counter[str](), per_cell
    if cell:
        yield cell.most_common(1)[0][0]
