"""What exceptions keep of the calls that they ended."""

from __future__ import annotations


def forget_frames(error: BaseException) -> None:
    """Takes from the exception, and from those that led to it, the frames that they passed.

    A future or a call has its exception, that has the frames, and one of these has the future: such
    a cycle, with megabytes of a request in it, is in use until the garbage collector comes by.
    """
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            waiting += (each.__context__, each.__cause__)
