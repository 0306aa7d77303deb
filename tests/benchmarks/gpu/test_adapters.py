"""Thousands of adapters out of one block: each differs from every other, and answers show it."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from benchmarks.gpu.adapters import WindowLoader, Windows
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.model import RandomModel
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.scale import SCALES
from benchmarks.models import SHAPES
from benchmarks.step_loop import StepLoop
from dataplane.channel import Adapter

SCALE = SCALES["tiny"]
COUNT = 40


def answer(loop: StepLoop, adapter: Adapter | None) -> tuple[int, ...]:
    tokens: list[int] = []

    def done(outputs) -> bool:
        for output in outputs:
            tokens.extend(output.token_ids)
        return len(tokens) == 12

    loop.submit(adapter, prompt_tokens=5, new_tokens=12, prompt=[20, 21, 22, 23, 24])
    loop.run_until(done)
    return tuple(tokens)


def test_adapters_differ_everywhere_and_in_their_answers(tmp_path: Path) -> None:
    device = torch.device("cpu")
    bench = Bench(SCALE, device, torch.float32, tmp_path, Budget(1000.0, lambda: 0.0))
    model = RandomModel(tmp_path / "model", SHAPES["tiny"], torch.float32, device)
    windows = Windows(model, ranks=(4, 8), count=COUNT, scale=0.2)
    adapters = [windows.adapter(rank, index) for rank in (4, 8) for index in (0, 1, 2, COUNT - 1)]
    with bench.engine(StepLoop, model, windows, max_running=4) as loop:
        loader = loop.parts.loader
        assert isinstance(loader, WindowLoader)
        pages = [loader.host_adapter(each.digest).pages for each in adapters]
        for one, other in itertools.combinations(pages[:4], 2):
            assert (one == other).float().mean() < 0.001
        for each in pages:
            assert 0.19 < float(each.std()) < 0.21
        answers = {answer(loop, each) for each in [None, *adapters]}
        assert len(answers) == len(adapters) + 1
        again = answer(loop, adapters[1])
        loop.forget_in_pool()
        assert answer(loop, adapters[1]) == again
        loop.check_empty()
        stats = loop.engine.stats()
        assert set(stats.host_digests) | set(stats.pool_digests) == {
            each.digest for each in adapters
        }


def test_bytes_are_those_of_the_matrices(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        model = RandomModel(tmp_path / str(width), shape, dtype, torch.device("cpu"))
        windows = Windows(model, ranks=(4,), count=2, targets=("q_proj",))
        both = shape.hidden_size * 2
        assert windows.num_bytes(windows.adapter(4, 1)) == width * shape.num_layers * 4 * both
        assert model.kv_token_bytes == width * 2 * shape.num_layers * 2 * 16
        weights = model.weights()
        per_layer = sum(
            each.numel()
            for layer in weights.layers
            for each in (layer.qkv, layer.o, layer.gate_up, layer.down)
        )
        assert model.base_bytes == width * (per_layer + weights.head.numel())
