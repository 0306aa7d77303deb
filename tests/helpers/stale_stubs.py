"""Fails when a stub beside a .proto differs from what `make proto` would write now."""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"


def stale(protos: Path) -> list[str]:
    """Paths, relative to `protos`, of stubs that are missing or stale."""
    sources = sorted(protos.glob("chorale/v1/*.proto"))
    with tempfile.TemporaryDirectory() as out:
        well_known = files("grpc_tools") / "_proto"
        arguments = [f"-I{protos}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
        arguments += [f"--grpc_python_out={out}", *map(str, sources)]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc failed")
        fresh = sorted(path for path in Path(out).rglob("*") if path.is_file())
        return [str(path.relative_to(out)) for path in fresh if _differs(path, Path(out), protos)]


def _differs(fresh: Path, out: Path, protos: Path) -> bool:
    committed = protos / fresh.relative_to(out)
    return not committed.is_file() or committed.read_bytes() != fresh.read_bytes()


if __name__ == "__main__":
    if names := stale(PROTOS):
        sys.exit("stale stubs, run `make proto`: " + ", ".join(names))
