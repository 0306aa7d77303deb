"""What all tests share. No test reaches beyond 127.0.0.1."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models here are tiny: more threads than one only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `pytest -n`: a file's tests stay together, those of e2e/ too, which share a deployment.
    Those that start whole processes go first: a worker that gets a long one last keeps all waiting.
    """
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    if not config.pluginmanager.has_plugin("xdist"):
        return
    for item in items:
        path = item.path.relative_to(_HERE)
        group = "e2e" if path.parts[0] == "e2e" else str(path)
        item.add_marker(pytest.mark.xdist_group(group))
