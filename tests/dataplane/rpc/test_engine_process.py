"""An engine never outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
# An engine that takes until there is a file to import what it needs, as the real one takes a while.
_ENGINE = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
from dataplane.engine.parent import die_with
die_with(int(sys.argv[-1]))
pathlib.Path(sys.argv[1] + ".lives").touch()
time.sleep(600)
"""
_PARENT = """
import sys, time
from dataplane.rpc.engine_process import EngineProcess
process = EngineProcess((sys.executable, "-c", *sys.argv[1:]))
process.start()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("imports", [False, True])
def test_an_engine_ends_with_its_frontend(tmp_path: Path, imports: bool) -> None:
    """Killed while the engine runs, and killed while it imports and has not asked for anything."""
    said, imported = tmp_path / "pid", tmp_path / "imported"
    if not imports:
        imported.touch()
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _ENGINE, str(said), str(imported)],
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)},
    ) as parent:
        try:
            wanted = said if imports else Path(f"{said}.lives")
            until_s = time.monotonic() + 60
            while not (wanted.exists() and said.read_text()):
                assert time.monotonic() < until_s and parent.poll() is None
                time.sleep(0.01)
            engine = psutil.Process(int(said.read_text()))
        finally:
            parent.send_signal(signal.SIGKILL)
    imported.touch()
    assert psutil.wait_procs([engine], timeout=60)[1] == []
    assert Path(f"{said}.lives").exists() != imports
