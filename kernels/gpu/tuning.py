"""Tile sizes from the committed tables: nothing is searched for while serving.

kernels/tuning/<family>.json: device -> kernel -> case -> settings. A device without a table of its
own takes "default", which asks for little shared memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent.parent / "tuning"

Settings = Mapping[str, int]


def tuned(family: str, device: str, kernel: str, case: str) -> Settings:
    """Raises: KeyError for a case that the table lacks: the tables are checked by tests."""
    table = _table(family)
    return table.get(device, table["default"])[kernel][case]


def launch_options(settings: Settings) -> dict[str, Any]:
    return {name: settings[name] for name in ("num_warps", "num_stages")}


@cache
def _table(family: str) -> Mapping[str, Mapping[str, Mapping[str, Settings]]]:
    return json.loads((TABLES / f"{family}.json").read_text())
