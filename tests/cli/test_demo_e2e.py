"""`python -m examples.demo.run`, as `make demo` runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples.demo.voices import BASE_VOICE, PROMPT, VOICES, english
from tests.cli.test_up_e2e import adapter_dirs
from tests.helpers.up import ROOT, chorale_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUMBER = 407


def test_every_voice_answers_and_all_ends_cleanly() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo.run", "--number", str(NUMBER)],
        cwd=ROOT,
        env=chorale_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line.split("|", 1) for line in done.stdout.splitlines() if " | " in line]
    answers = {name.strip(): text.strip() for name, text in rows}
    adapters = {path.name for path in adapter_dirs()}
    assert len(adapters) >= 8
    assert {name for name in answers if not name.startswith("(")} == adapters
    expected = {name: VOICES[name](NUMBER) for name in adapters}
    assert {name: answers[name] for name in adapters} == expected
    (base,) = answers.keys() - adapters
    assert answers[base] == english(NUMBER), f"{BASE_VOICE} of {PROMPT.format(n=NUMBER)}"
    assert "stopped cleanly" in done.stdout
