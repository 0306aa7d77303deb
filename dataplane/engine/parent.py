"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Linux: the kernel kills this process when `parent`, which started it, goes, however it goes.

    parent: told by the parent itself. Asked for here, it would be somebody else's number when the
    parent died while this process was still importing. Raises: SystemExit when it is gone already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
