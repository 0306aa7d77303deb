"""What make gpu-check and make gpu-sanitize make of the tests that they run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import check
from benchmarks.gpu.check import Outcome, read_report, run_group, run_groups, section_of

TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
@pytest.mark.skip(reason="no second GPU")
def test_skipped(): pass
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_counts_and_reasons_of_a_group(tmp_path: Path) -> None:
    outcome = run_group([write(tmp_path / "test_one.py", TESTS)], (), 100)
    assert (outcome.state, outcome.num_passed, outcome.num_skipped) == ("passed", 1, 1)
    assert outcome.reasons == {"no second GPU": 1} and outcome.seconds > 0


def test_a_group_without_gpu_tests_is_left_out(tmp_path: Path) -> None:
    outcome = run_group([write(tmp_path / "test_one.py", "def test_good(): pass")], (), 100)
    assert outcome.state == "skipped" and outcome.num_failed == 0
    assert section_of({"one": outcome}, None, {"one"}, "")["result"]["left_out"] == ["one"]


def test_failures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    write(
        path,
        """<testsuites><testsuite>
        <testcase classname="tests.a" name="test_one"><failure message="no"/></testcase>
        <testcase classname="tests.a" name="test_two"><error message="no"/></testcase>
        <testcase classname="tests.a" name="test_three"/>
        </testsuite></testsuites>""",
    )
    outcome = read_report(path)
    assert outcome.failures == ["tests.a::test_one", "tests.a::test_two"]
    assert (outcome.num_failed, outcome.num_passed) == (2, 1)


@pytest.mark.parametrize(
    ("status", "failure"), [(check._SANITIZER_ERROR, "compute-sanitizer"), (3, "exit status 3")]
)
def test_a_status_that_no_test_explains_is_a_failure(
    tmp_path: Path, status: int, failure: str
) -> None:
    """As compute-sanitizer gives it when all tests have passed."""
    command = ("sh", "-c", f'"$@"; exit {status}', "sh")
    outcome = run_group([write(tmp_path / "test_one.py", TESTS)], command, 100)
    assert outcome.state == "failed" and outcome.num_failed == 1 and outcome.num_passed == 1
    assert failure in outcome.failures[0]


def test_a_group_is_cut_off_at_the_limit_and_the_next_one_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All begins; the first one's time and its start; its end; the next one's time.
    times = iter((0.0, 0.1, 0.1, 1.3, 1.3))
    monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: next(times)))
    behind = ("sh", "-c", "sleep 60; true", "sh")
    outcomes = run_groups({"long": ("x",), "next": ("y",)}, behind, 1.3)
    assert [each.state for each in outcomes.values()] == ["cut off", "skipped"]
    assert "cut off after 1 s" in outcomes["long"].reasons
    assert "--budget" in next(iter(outcomes["next"].reasons))


def test_nothing_left_out_is_hidden() -> None:
    outcomes = {
        "lora": Outcome("passed", num_passed=3),
        "engine": Outcome("cut off"),
        "rest": Outcome("failed", num_failed=2),
    }
    known = {"attention", *outcomes}
    section = section_of(outcomes, None, known, "abc")
    result = section["result"]
    assert result["num_failed"] == 2 and result["left_out"] == ["attention", "engine"]
    assert result["num_left_out"] == 2
    later = section_of({"engine": Outcome("passed", num_passed=4)}, section, known, "def")
    assert later["result"]["left_out"] == ["attention"] and later["result"]["num_failed"] == 2
    assert later["result"]["groups"]["lora"] == result["groups"]["lora"]


def test_a_machine_without_a_gpu_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for arguments in ([], ["--memcheck"]):
        assert check.main([*arguments, "--out", str(tmp_path)]) == 0
        assert "torch finds no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_machine_without_the_sanitizer_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert check.main(["--memcheck"]) == 0
    assert "skipped: compute-sanitizer is not on the PATH" in capsys.readouterr().out


def test_groups_name_files_that_are_there() -> None:
    for groups in (check.CHECK_GROUPS, check.MEMCHECK_GROUPS):
        for arguments in groups.values():
            for argument in arguments:
                path = argument.removeprefix("--ignore=")
                if path.startswith("tests/"):
                    assert (check.ROOT / path).exists(), path


def test_every_test_that_needs_a_gpu_is_in_a_group() -> None:
    """But for those of the kernels and of this folder, whose groups are folders, or run none."""
    named = [path for group in check.CHECK_GROUPS.values() for path in group]
    marked = [
        path.relative_to(check.ROOT).as_posix()
        for path in (check.ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text() and path != Path(__file__)
    ]
    assert marked
    left_out = [path for path in marked if not any(path.startswith(each) for each in named)]
    assert not left_out
