"""What first tokens take here beside the engine's part of it."""

from __future__ import annotations

from chorale.path_time import PathTime


class FirstTokens:
    """Of all requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._way_in = PathTime()
        self._way_out = PathTime()

    def note(self, *, arrival_s: float, submitted_s: float, made_s: float, sent_s: float) -> None:
        """When a request came, when the engine was given it, when that had made the first token,
        and when the call was given it."""
        self._way_in.note(submitted_s - arrival_s, sent_s)
        self._way_out.note(sent_s - made_s, sent_s)

    def way_out_s(self, now_s: float) -> float:
        """From the engine to the call, as it usually takes at most."""
        return self._way_out.usual_s(now_s)

    def path_s(self, now_s: float) -> float:
        """All that is no part of the engine's."""
        return self._way_in.usual_s(now_s) + self._way_out.usual_s(now_s)
