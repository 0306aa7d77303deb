"""What the loads of one kind came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LoadCount:
    """Loads of one origin ("disk", or the scheme of the source's URI) with one outcome ("OK",
    "CANCELLED" or an error's reason) since the start, and their parts summed up, in seconds as
    LoadTimings has them. Those that were cancelled or failed have no parts."""

    origin: str
    outcome: str
    num_loads: int = 0
    size_bytes: int = 0
    queue_s: float = 0.0
    read_s: float = 0.0
    parse_s: float = 0.0
    build_s: float = 0.0
