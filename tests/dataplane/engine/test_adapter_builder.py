"""On a GPU what is computed for an adapter while it is packed stays off the stream of steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataplane.engine import setup
from dataplane.models.config_json import load_config
from tests.helpers.models import make_model, save_model


class Stream:
    waited_for: object = None

    def wait_stream(self, other: object) -> None:
        self.waited_for = other


def test_an_adapter_is_packed_on_a_stream_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[object] = ["the steps'"]

    @contextlib.contextmanager
    def use(stream: object) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    packed: list[object] = []
    blocks: list[object] = []

    def note(*arguments: Any, block: object, **options: Any) -> None:
        packed.append(current[-1])
        blocks.append(block)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(setup, "check_base", lambda *arguments, **options: None)
    monkeypatch.setattr(setup, "pack", note)
    config = load_config(save_model(make_model("llama"), tmp_path / "model"))
    data = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    pool: Any = SimpleNamespace(data=data, device="cuda", page_elems=64, num_pages=8)
    weights: Any = None
    adapter: Any = SimpleNamespace(manifest=None)
    block: Any = object()
    build = setup.adapter_builder("base", config, weights, pool, block)
    build(adapter)
    build(adapter)
    stream, other = packed
    assert isinstance(stream, Stream) and stream is other
    assert stream.waited_for == "the steps'", "its weights may still be on their way"
    assert blocks == [block, block]
