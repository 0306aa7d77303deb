"""The GPU tests on the device at hand, group by group within a budget, and what did not run.

    python -m benchmarks.gpu.check [--memcheck] [--budget 500] [--groups NAME ...] [--jobs N]
                                   [--out DIR]

Without --memcheck: kernels against their twins, then the engine against the float32 reference. With
it: the LoRA and attention tests under compute-sanitizer, which takes many times as long; without
that program they are skipped, and it says so. A group that fails, is cut off or is not reached
counts against the result, which goes into the GPU's report (benchmarks.gpu) as a section.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.errors import BenchError
from benchmarks.gpu.parts import origin
from benchmarks.gpu.record import Record, report_name
from benchmarks.gpu.timing import device_name
from benchmarks.load.provenance import ROOT

SANITIZER = "compute-sanitizer"
_PYTEST = ("-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider", "-q", "-m", "gpu")
_SANITIZER_ERROR = 99
_NO_TESTS = 5  # pytest's exit status
_MAX_JOBS = 12  # each has a CUDA context of its own

CHECK_GROUPS = {
    "lora": ("tests/kernels/test_lora_gpu.py",),
    "attention": ("tests/kernels/test_attention_gpu.py",),
    "other kernels": (
        "tests/kernels",
        "--ignore=tests/kernels/test_lora_gpu.py",
        "--ignore=tests/kernels/test_attention_gpu.py",
    ),
    "engine": (
        "tests/dataplane/engine",
        "tests/dataplane/lora",
        "tests/dataplane/sampling",
    ),
}
# The sanitizer slows launches down many times: one dtype of what is run for several. It sees the
# end of each tensor only if each is an allocation of its own, which captured graphs do not allow.
_SANITIZED = ("-k", "not graph and not dtype1 and not dtype2")
MEMCHECK_GROUPS = {name: (*CHECK_GROUPS[name], *_SANITIZED) for name in ("lora", "attention")}


@dataclass
class Outcome:
    """Of one group of tests. reasons: why tests were skipped, with how many."""

    state: str  # passed, failed, cut off, skipped
    seconds: float = 0.0
    num_passed: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    failures: list[str] = field(default_factory=list[str])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--memcheck", action="store_true", help="under compute-sanitizer")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds for all groups")
    parser.add_argument("--jobs", type=int, default=_default_jobs(), help="tests at once")
    parser.add_argument("--groups", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--commit", default="", help="of the source tree, where git is not")
    arguments = parser.parse_args(argv)
    known = MEMCHECK_GROUPS if arguments.memcheck else CHECK_GROUPS
    chosen = arguments.groups or list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"--groups {' '.join(unknown)}: there are {', '.join(known)}")
    if not torch.cuda.is_available():
        print("skipped: torch finds no GPU; without one, make test runs what needs none")
        return 0
    prefix: tuple[str, ...] = ()
    if arguments.memcheck:
        sanitizer = shutil.which(SANITIZER)
        if sanitizer is None:
            print(f"skipped: {SANITIZER} is not on the PATH; it comes with the CUDA toolkit")
            return 0
        prefix = (sanitizer, "--tool", "memcheck", "--error-exitcode", str(_SANITIZER_ERROR))
    jobs = ("-n", str(arguments.jobs)) if arguments.jobs > 1 and not prefix else ()
    groups = {name: (*known[name], *jobs) for name in chosen}
    at_once = len(groups) if arguments.memcheck else 1
    outcomes = run_groups(groups, prefix, arguments.budget, at_once)
    show(outcomes)
    name = device_name(torch.device("cuda"))
    setting = {"device": name, "device_type": "cuda", "shape": "real", "dtype": "bfloat16"}
    record = Record(arguments.out / report_name(name, "real"), setting)
    part = "memcheck" if arguments.memcheck else "check"
    record.put(part, section_of(outcomes, record.sections.get(part), set(known), arguments.commit))
    print(f"written to {record.path}")
    return 0 if all(each.state == "passed" for each in outcomes.values()) else 1


def _default_jobs() -> int:
    """Compilation takes most of the time, and one core for each test, while a few cores are left to
    those that time the host; one where pytest-xdist is not installed."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(1, min(_MAX_JOBS, len(os.sched_getaffinity(0)) * 3 // 4))


def run_groups(
    groups: dict[str, tuple[str, ...]],
    prefix: Sequence[str],
    budget_s: float,
    at_once: int = 1,
) -> dict[str, Outcome]:
    """Each in a process of its own, so many side by side, until the time is over."""
    until_s = time.monotonic() + budget_s

    def run(name: str) -> Outcome:
        left_s = until_s - time.monotonic()
        if left_s < 1:
            reason = f"no time left of the {budget_s:g} s: give --groups, or a larger --budget"
            return Outcome("skipped", reasons={reason: 1})
        print(f"{name}: {' '.join(groups[name])}", flush=True)
        return run_group(groups[name], prefix, left_s)

    if at_once == 1:
        return {name: run(name) for name in groups}
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(groups, pool.map(run, groups), strict=True))


def run_group(tests: Sequence[str], prefix: Sequence[str], limit_s: float) -> Outcome:
    """Runs pytest on `tests`, behind the command `prefix`, for so long at most."""
    environment = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "protos"), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if prefix:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*prefix, sys.executable, "-m", "pytest", *_PYTEST, f"--junitxml={report}"]
        # A session of its own: behind the sanitizer the tests are its child.
        process = subprocess.Popen(
            [*command, *tests], cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - started_s
            return Outcome("cut off", seconds, reasons={f"cut off after {seconds:.0f} s": 1})
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        outcome = read_report(report) if report.exists() else Outcome("failed", num_failed=1)
    outcome.seconds = time.monotonic() - started_s
    if code == _NO_TESTS:
        outcome.state = "skipped"
        outcome.reasons["there are no such tests"] = 1
        return outcome
    if code == _SANITIZER_ERROR:
        outcome.failures.append(f"{SANITIZER} found errors: see its lines above")
    if code and not outcome.num_failed:
        outcome.num_failed = 1
        outcome.failures.append(f"exit status {code}")
    outcome.state = "failed" if outcome.num_failed else "passed"
    if not outcome.num_failed and not outcome.num_passed:
        outcome.state = "skipped"
    return outcome


def read_report(path: Path) -> Outcome:
    """Of pytest's JUnit report."""
    outcome = Outcome("passed")
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.num_failed += 1
            outcome.failures.append(name)
        elif (skipped := case.find("skipped")) is not None:
            outcome.num_skipped += 1
            reason = str(skipped.get("message"))[:200]
            outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
        else:
            outcome.num_passed += 1
    return outcome


def section_of(
    outcomes: dict[str, Outcome], before: dict[str, Any] | None, known: set[str], commit: str
) -> dict[str, Any]:
    """Groups that were not run now stay as they were `before`, each with its own commit.
    num_left_out: groups that did not run to their end."""
    made = origin(commit)
    kept = before["result"]["groups"] if before and "result" in before else {}
    now = {name: {**asdict(each), "commit": made["commit"]} for name, each in outcomes.items()}
    groups: dict[str, dict[str, Any]] = {**kept, **now}
    left_out = known - groups.keys()
    left_out |= {name for name, each in groups.items() if each["state"] in ("cut off", "skipped")}
    return {
        "state": "done",
        "result": {
            "num_failed": sum(each["num_failed"] for each in groups.values()),
            "num_left_out": len(left_out),
            "left_out": sorted(left_out),
            "groups": groups,
        },
        "seconds": sum(each["seconds"] for each in groups.values()),
        **made,
    }


def show(outcomes: dict[str, Outcome]) -> None:
    print(f"\n{'':<24}{'':<9}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for name, each in outcomes.items():
        print(
            f"{name:<24}{each.state:<9}{each.num_passed:>8}{each.num_failed:>8}"
            f"{each.num_skipped:>8}{each.seconds:>9.1f}"
        )
        for reason, count in each.reasons.items():
            print(f"    {count} not run: {reason}")
        for failure in each.failures:
            print(f"    FAILED {failure}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"error: {error.reason}: {error.message}")
