from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from chorale import errors
from controlplane.cli.exit_codes import EXPLAINED, ExitCode
from controlplane.cli.output import print_json
from tests.cli.conftest import Chorale
from tests.helpers.scripted_gateway import ScriptedGateway
from tests.helpers.waiting import refusing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgumentError, 2),
        (errors.NotFoundError, 3),
        (errors.FailedPreconditionError, 4),
        (errors.AlreadyExistsError, 4),
        (errors.PermissionDeniedError, 4),
        (errors.UnauthenticatedError, 4),
        (errors.ResourceExhaustedError, 5),
        (errors.UnavailableError, 5),
        (errors.DeadlineExceededError, 5),
        (errors.InternalError, 1),
    ],
)
def test_each_error_has_its_exit_code_and_two_forms(
    chorale: Chorale, gateway: ScriptedGateway, error: type[errors.ChoraleError], code: int
) -> None:
    gateway.answers["GetAdapter"] = error("SOME_REASON", "what\nhappened", metadata={"k": "v"})
    plain = chorale("adapters", "show", "x")
    assert (plain.exit_code, plain.stdout) == (code, "")
    assert plain.stderr == "error: SOME_REASON: what happened\n"
    as_json = chorale("adapters", "show", "x", "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout)["error"] == {
        "reason": "SOME_REASON",
        "message": "what\nhappened",
        "metadata": {"k": "v"},
        "retry_after_s": None,
        "exit_code": code,
    }


def test_no_server_says_what_to_do(chorale: Chorale) -> None:
    with refusing() as address:
        result = chorale("status", "--address", address)
    assert result.exit_code == 5
    assert result.stderr.startswith(f"error: NO_SERVER: nothing serves at {address}")
    assert "chorale up" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("adapters", "promote", "x", str(2**32)),
        ("adapters", "remove", "x", "--version", str(2**32)),
        ("adapters", "alias", "set", "y", "x", "--version", str(2**32)),
        ("adapters", "list", "--timeout", "inf"),
        ("adapters", "show", "caf\udce9"),
        ("adapters", "add", "x", "/caf\udce9"),
        ("adapters", "add", "x", "", "--upload"),
        ("adapters", "add", "x", "hf://org/x", "--source-token", "line\n"),
        ("adapters", "verify", "x", "--source-token", "\u00e9"),
        ("generate", "x", "--adapter", "x", "--source-token", "x" * 5000),
    ],
)
def test_what_cannot_be_sent_is_no_fault_of_chorale(
    chorale: Chorale, gateway: ScriptedGateway, arguments: tuple[str, ...]
) -> None:
    result = chorale(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "INTERNAL" not in result.stderr and "rror" in result.stderr
    assert gateway.requests == []


def test_no_answer_in_time_says_so(chorale: Chorale, gateway: ScriptedGateway) -> None:
    end = threading.Event()
    gateway.answers["GetAdapter"] = lambda _request: end.wait(60)
    result = chorale("adapters", "show", "x", "--timeout", "0.2")
    end.set()
    assert result.exit_code == 5
    assert result.stderr == (
        f"error: DEADLINE_EXCEEDED: {gateway.address} gave no answer in the time that --timeout "
        "allows\n"
    )


def test_help_tells_every_exit_code(chorale: Chorale) -> None:
    shown = chorale("--help").stdout
    for code in ExitCode:
        assert f"{code.value}  {EXPLAINED[code]}" in shown


def test_the_command_line_loads_no_server_and_no_grpc() -> None:
    """What keeps `chorale --help` quick, and `up` quick to start its parts."""
    script = (
        "import sys, controlplane.cli.app, controlplane.cli.supervisor.supervise\n"
        "heavy = {'grpc', 'redis', 'numpy', 'torch', 'starlette', 'rich', 'transformers'}\n"
        "print(*heavy & set(sys.modules))"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_json_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON alone lets through: DEL, CSI in one character, the direction of text, tags."""
    value = {"labels": {"a\x9b31m": "\x1b[2J\x7f\u202e\U000e0041 \ud800 é\n語 😀"}}
    print_json(value)
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert json.loads(shown) == value
    assert "é" in shown and "語 😀" in shown
