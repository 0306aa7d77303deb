"""What is still in use when nobody collects garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_collections(*kinds: type[Any]) -> Generator[Callable[[], int]]:
    """Inside, of how many objects of these kinds there are more than at the beginning."""
    gc.collect()
    before = _count(kinds)
    gc.disable()
    try:
        yield lambda: max(0, _count(kinds) - before)
    finally:
        gc.enable()


def _count(kinds: tuple[type[Any], ...]) -> int:
    # `isinstance` would ask strangers' objects, some of which warn.
    return sum(type(each) in kinds for each in gc.get_objects())
