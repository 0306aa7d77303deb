"""The package's surface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import chorale
from chorale import errors

PROTOS = Path(__file__).parents[2] / "protos"


def test_importing_imports_no_grpc() -> None:
    program = (
        "import sys, chorale\n"
        "assert not {'grpc', 'google.protobuf', 'numpy'} & set(sys.modules)\n"
        "chorale.NotFoundError\n"
        "assert 'grpc' in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(PROTOS)}, timeout=30
    )


def test_every_exported_name_is_there_and_every_error_is_exported() -> None:
    for name in chorale.__all__:
        assert getattr(chorale, name) is not None
        assert name in dir(chorale)
    tree = {error.__name__ for error in errors.BY_CODE.values()} | {"ChoraleError"}
    assert tree <= set(chorale.__all__)
    with pytest.raises(AttributeError, match="Cliant"):
        _ = chorale.Cliant  # pyright: ignore
