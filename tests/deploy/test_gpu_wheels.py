"""`make gpu-wheels` asks for the platforms that wheels are made for."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_HERE = {"truststore"}  # plain Python, which httpcore2 alone needs


@pytest.mark.skipif(platform.machine() != "x86_64", reason="wheels of another processor are here")
def test_every_wheel_is_for_a_platform_that_is_asked_for() -> None:
    command = subprocess.run(
        ["make", "-n", "gpu-wheels"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    asked = set(re.findall(r"--platform (\S+)", command))
    assert asked
    for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines():
        if line.startswith("#") or (name := re.split("[<>=]", line)[0]) in NOT_HERE:
            continue
        text = metadata.distribution(name).read_text("WHEEL") or ""
        made_for = {tag.rpartition("-")[2] for tag in re.findall(r"^Tag: (\S+)", text, re.M)}
        assert "any" in made_for or made_for & asked, (name, made_for)
