"""Machine code of kernels is kept where it can be, and kernels work where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import pytest

from kernels.cpu import compile as compiling


def double(x: Any) -> Any:
    return x + x


def test_kept_in_the_folder_named_by_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling._folder.cache_clear()
    before = compiling._config.CACHE_DIR
    try:
        assert compiling.compiled(double)(2) == 4
        folder = compiling._folder()
    finally:
        compiling._folder.cache_clear()
    assert folder.parent == tmp_path / "chorale"
    assert list(folder.rglob("*.nbc"))
    assert before == compiling._config.CACHE_DIR  # other users of numba keep their own


def test_compiles_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = numba.njit, []

    def njit(function: Any, **options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiling.compiled(double)(3) == 6
    assert asked == [True, False]
