"""The supervisor with small scripts for parts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from controlplane.cli.errors import PartFailedError
from controlplane.cli.supervisor import keeper, supervise
from controlplane.cli.supervisor.keeper import Report
from controlplane.cli.supervisor.plan import CORE, EDGE
from controlplane.cli.supervisor.process import Part
from controlplane.cli.supervisor.supervise import STOP_GRACE_S, Supervisor
from tests.helpers.waiting import PATIENCE_S, eventually

_SERVE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(0)))
print("ready part", os.getpid(), flush=True)
time.sleep(600)
"""
_DEAF = _SERVE.replace('lambda *_: (print("bye", flush=True), sys.exit(0))', "signal.SIG_IGN")
_BROKEN = "import sys; print('cannot find the moon', file=sys.stderr); sys.exit(1)"
_REFUSES = "import sys; print('--moon is not known', file=sys.stderr); sys.exit(2)"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that heed SIGTERM have time to, however slow the machine."""
    for phase in STOP_GRACE_S:
        monkeypatch.setitem(STOP_GRACE_S, phase, PATIENCE_S)


def part(name: str, script: str, stop_phase: int = EDGE, drain_s: float = 0.0) -> Part:
    return Part(name, [sys.executable, "-c", script], stop_phase=stop_phase, drain_s=drain_s)


class Run:
    """A supervisor at work in this event loop; signals reach it as they would reach `up`."""

    def __init__(self, logs: Path, *parts: Part, report: Report | None = None) -> None:
        self.logs = logs
        self.reports: list[str] = []
        self.announced = asyncio.Event()
        self.num_announced = 0
        self.supervisor = Supervisor(parts, {"FLEET": "token"}, logs, report or self.reports.append)
        self.task = asyncio.create_task(self.supervisor.run(self._announce))

    async def _announce(self) -> None:
        self.num_announced += 1
        self.announced.set()

    async def until_ready(self) -> None:
        await asyncio.wait_for(self.announced.wait(), PATIENCE_S)

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def pids(self, name: str) -> list[int]:
        lines = self.log(name).splitlines()
        return [int(line.split()[2]) for line in lines if line.startswith("ready part")]

    async def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(self.task, PATIENCE_S)


async def test_announces_once_and_stops_all(tmp_path: Path) -> None:
    run = Run(tmp_path, part("one", _SERVE), part("two", _SERVE, CORE))
    await run.until_ready()
    (one,), (two,) = run.pids("one"), run.pids("two")
    await run.stop()
    assert not psutil.pid_exists(one) and not psutil.pid_exists(two)
    assert "bye" in run.log("one") and "bye" in run.log("two")
    assert run.num_announced == 1
    assert run.reports == []


async def test_a_lower_phase_is_gone_before_the_next_is_told(tmp_path: Path) -> None:
    note = tmp_path / "order"
    script = f"""
import signal, time
def stop(*_):
    time.sleep(0.3)
    with open({str(note)!r}, "a") as file:
        file.write(NAME)
    raise SystemExit
signal.signal(signal.SIGTERM, stop)
print("ready part", flush=True)
time.sleep(600)
"""
    run = Run(
        tmp_path,
        part("core", "NAME = 'core '" + script, CORE),
        part("edge", "NAME = 'edge '" + script, EDGE),
    )
    await run.until_ready()
    await run.stop()
    assert note.read_text() == "edge core "


async def test_a_part_that_dies_comes_back(tmp_path: Path) -> None:
    run = Run(tmp_path, part("one", _SERVE))
    await run.until_ready()
    os.kill(run.pids("one")[0], signal.SIGKILL)
    await eventually(lambda: len(run.pids("one")) == 2)
    assert psutil.pid_exists(run.pids("one")[1])
    assert any("one" in line and "SIGKILL" in line for line in run.reports)
    await run.stop()
    assert run.num_announced == 1


async def test_gives_up_on_a_part_that_never_serves_however_long_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(keeper, "QUICK_S", 0.01)
    run = Run(tmp_path, part("bad", _BROKEN))
    with pytest.raises(PartFailedError, match="again and again"):
        await asyncio.wait_for(run.task, PATIENCE_S)


async def test_a_part_whose_log_finds_no_room_is_not_held_up(tmp_path: Path) -> None:
    (tmp_path / "wordy.log").symlink_to("/dev/full")
    script = "import sys\nfor _ in range(4000): print('x' * 99, file=sys.stderr)\n" + _SERVE
    run = Run(tmp_path, part("wordy", script))
    await run.until_ready()
    await run.stop()
    assert run.reports == []


async def test_stderr_that_nobody_reads_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, open(writer, "w", buffering=1) as broken:
        patch.setattr(sys, "stderr", broken)
        run = Run(tmp_path, part("one", _SERVE), report=supervise.report)
        await run.until_ready()
        os.kill(run.pids("one")[0], signal.SIGKILL)
        await eventually(lambda: len(run.pids("one")) == 2)
        await run.stop()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # takes what is left in the buffer


async def test_gives_up_on_a_part_that_keeps_dying_and_shows_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY_S", 0.01)
    run = Run(tmp_path, part("good", _SERVE), part("bad", _BROKEN))
    with pytest.raises(PartFailedError) as caught:
        await asyncio.wait_for(run.task, PATIENCE_S)
    assert caught.value.exit_code != 0
    assert "bad" in caught.value.message and "bad.log" in caught.value.message
    assert "cannot find the moon" in caught.value.last_lines
    assert run.log("bad").count("moon") == keeper.restart_policy().max_quick_failures
    assert all(not psutil.pid_exists(pid) for pid in run.pids("good"))


async def test_a_refused_configuration_is_not_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path, part("bad", _REFUSES))
    with pytest.raises(PartFailedError) as caught:
        await asyncio.wait_for(run.task, PATIENCE_S)
    assert caught.value.exit_status == 2
    assert run.log("bad").count("moon") == 1


async def test_a_configuration_that_has_served_is_tried_again(tmp_path: Path) -> None:
    mark = tmp_path / "full"
    script = f"import os, sys\nif os.path.exists({str(mark)!r}): sys.exit(2)\n" + _SERVE
    run = Run(tmp_path, part("one", script))
    await run.until_ready()
    mark.touch()
    os.kill(run.pids("one")[0], signal.SIGKILL)
    await eventually(lambda: any("status 2" in line for line in run.reports))
    mark.unlink()
    await eventually(lambda: len(run.pids("one")) == 2)
    await run.stop()


async def test_a_deaf_part_is_killed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STOP_GRACE_S, EDGE, 0.2)
    run = Run(tmp_path, part("deaf", _DEAF))
    await run.until_ready()
    (pid,) = run.pids("deaf")
    await run.stop()
    assert not psutil.pid_exists(pid)


async def test_a_part_that_drains_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import signal, sys, time
def stop(*_):
    time.sleep(1.5)
    print("finished", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready part", flush=True)
time.sleep(600)
"""
    for phase in STOP_GRACE_S:  # the time to drain is all that it has
        monkeypatch.setitem(STOP_GRACE_S, phase, 0.0)
    run = Run(tmp_path, part("one", script, drain_s=90.0))
    await run.until_ready()
    await run.stop()  # raises when it takes as long as that
    assert "finished" in run.log("one")
    assert any("90 s to finish" in line for line in run.reports)


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    run = Run(tmp_path, part("deaf", _DEAF, drain_s=90.0))
    await run.until_ready()
    (pid,) = run.pids("deaf")
    os.kill(os.getpid(), signal.SIGINT)
    await eventually(lambda: run.reports)
    assert "90 s to finish" in run.reports[0] and psutil.pid_exists(pid)
    await run.stop()  # raises when it takes as long as that
    assert not psutil.pid_exists(pid)


async def test_error_lines_are_shown_but_no_flood(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "print('INFO all is well', file=sys.stderr)\n"
        "for n in range(500): print('ERROR moon', n, '\\x1b[31m', file=sys.stderr)\n" + _SERVE
    )
    run = Run(tmp_path, part("loud", script))
    await run.until_ready()
    await eventually(lambda: run.log("loud").count("ERROR moon") == 500)
    await run.stop()
    assert run.reports[0].startswith("loud: ERROR moon 0")
    assert 2 <= len(run.reports) < 20 and "loud.log" in run.reports[-1]
    assert not any("\x1b" in line or "INFO" in line for line in run.reports)


async def test_secrets_come_by_environment(tmp_path: Path) -> None:
    script = "import os; print('fleet is', os.environ['FLEET'])\n" + _SERVE
    run = Run(tmp_path, part("one", script))
    await run.until_ready()
    assert "token" not in " ".join(psutil.Process(run.pids("one")[0]).cmdline())
    await run.stop()
    assert "fleet is token" in run.log("one")


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_killing_the_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from controlplane.cli.supervisor.process import Part
from controlplane.cli.supervisor.supervise import Supervisor
async def announce(): print("announced", flush=True)
parts = [Part(name, [sys.executable, "-c", {_DEAF!r}]) for name in ("one", "two")]
asyncio.run(Supervisor(parts, {{}}, Path({str(tmp_path)!r}), print).run(announce))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"announced\n"
        children = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(children) == 2
        supervisor.kill()
        supervisor.wait()
    gone, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive and len(gone) == 2
