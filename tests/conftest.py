"""What all tests share. No test reaches beyond 127.0.0.1."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models here are tiny: more threads than one only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Shells start what runs in the background deaf to it, and so would be the processes of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No example database: tests leave nothing behind. No time either: machines differ.
settings.register_profile(
    "any machine", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start whole processes first: with `pytest -n`, a worker that gets a long file last
    keeps the other waiting. The first of all starts no server: the other worker's compile kernels
    alone then, and all later ones find the machine code."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("e2e") is None,
            not item.path.match("dataplane/engine/test_triton.py"),
        )
    )
