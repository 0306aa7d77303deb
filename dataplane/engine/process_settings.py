"""Settings of the whole process that an engine runs best with."""

from __future__ import annotations

import sys

import torch

_SWITCH_INTERVAL_S = 0.0001


def settle() -> None:
    """Call it before the engine is built: threads take over what their maker had."""
    torch.set_flush_denormal(True)  # arithmetic on denormal numbers is many times slower
    # The thread that computes asks for the interpreter between two products, and should not wait
    # the usual 5 ms for it while the next step is scheduled.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
