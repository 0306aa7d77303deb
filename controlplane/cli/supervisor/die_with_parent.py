"""Runs a command that is killed when the process that started it dies.

`python -I -S die_with_parent.py PARENT_PID COMMAND [ARGUMENT …]`: asks the kernel for SIGKILL at
the parent's death (PR_SET_PDEATHSIG, which survives exec) and becomes the command. The signal
follows the parent's *thread* that started the child, so parents start children from their main
thread. Linux only; elsewhere the command just runs. Standard library only: it must start at once.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew of our wish
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
