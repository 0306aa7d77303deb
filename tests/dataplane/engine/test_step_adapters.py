"""What a step keeps of its adapters for the next one, and when it must not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataplane.engine.step_adapters import StepAdapters
from dataplane.lora.resident import ResidentAdapter
from kernels.lora.layered import LayeredSegments
from kernels.lora.plan import PLAN_FIELDS, LoraSpans, PageRun
from tests.helpers.engine import Rig
from tests.helpers.models import add_adapter, make_model, save_model

PROMPT = [5, 6, 7, 8, 9]
TARGETS = {"a": ["q_proj", "lm_head"], "b": ["down_proj", "lm_head"], "dora": ["v_proj"]}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    model = make_model("llama")
    paths = {"model": save_model(model, root / "model")}
    for seed, (name, targets) in enumerate(TARGETS.items()):
        paths[name] = root / name
        more = {"use_dora": True} if name == "dora" else {}
        add_adapter(model, name, paths[name], rank=8, target_modules=targets, seed=seed, **more)
    return paths


class Made:
    """Step adapters of a rig whose pool has the given adapters."""

    def __init__(self, rig: Rig, paths: list[Path]) -> None:
        self.resident = rig.engine._resident
        self.hosts = [rig.loader.load(str(path)) for path in paths]
        self.digests = [host.digest for host in self.hosts]
        for host in self.hosts:
            self.install(host)
        self.step = StepAdapters(rig.engine._decoder.config, rig.pool, self.resident)

    def install(self, host: Any) -> ResidentAdapter:
        adapter = self.resident.install(host)
        assert adapter is not None
        return adapter


def test_the_same_adapters_over_the_same_rows_are_kept(assets: dict[str, Path]) -> None:
    made = Made(Rig(assets["model"]), [assets["a"], assets["dora"]])
    a, dora = made.digests
    spans = [(a, 0, 2), (dora, 2, 3)]
    layers, head = made.step.layers(spans), made.step.head([(a, 0, 1)])
    assert made.step.layers([]).segments == [{}] * 3  # a step of the base model alone between
    assert made.step.layers([*spans]) is layers
    assert made.step.head([(a, 0, 1)]) is head
    assert layers.affine and layers.affine[0]["qkv"][0].start == 2


def test_other_rows_and_other_adapters_are_made_anew(assets: dict[str, Path]) -> None:
    made = Made(Rig(assets["model"]), [assets["a"], assets["b"]])
    a, b = made.digests
    for spans in ([(a, 0, 1)], [(a, 0, 2)], [(b, 0, 2)], [(a, 0, 1), (b, 1, 2)], [(a, 0, 1)]):
        segments = made.step.layers(spans).segments
        assert isinstance(segments, LayeredSegments)
        assert segments.common.spans.tolist() == [[start, end] for _, start, end in spans]
        for layer in range(len(segments)):
            names = {"qkv": a, "down": b}
            wanted = {name for name, digest in names.items() if digest in [s[0] for s in spans]}
            assert set(segments[layer]) == wanted
            for name, group in segments[layer].items():
                assert [(each.start, each.end) for each in group] == [
                    (start, end) for digest, start, end in spans if digest == names[name]
                ]
        (first, *_) = made.step.head(spans).lora
        assert [(each.start, each.end) for each in first.segments] == [
            (start, end) for _, start, end in spans
        ]


def test_an_adapter_that_came_back_is_another_one(assets: dict[str, Path]) -> None:
    made = Made(Rig(assets["model"]), [assets["a"]])
    (a,) = made.digests
    spans = [(a, 0, 1)]
    before = made.step.layers(spans).segments, made.step.head(spans)
    old = made.resident.held(a).page_ids
    assert made.resident.unload(a)
    made.install(Made(Rig(assets["model"]), [assets["b"]]).hosts[0])  # takes its place
    new = made.install(made.hosts[0])
    assert new.page_ids != old
    segments, head = made.step.layers(spans).segments, made.step.head(spans)
    assert segments is not before[0] and head is not before[1]
    assert isinstance(segments, LayeredSegments)
    assert segments.common.page_ids.tolist() == new.page_ids
    (segment,) = head.lora[0].segments
    assert segment.pages.ids.tolist() == new.page_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_right_after_the_pages_have_moved(
    assets: dict[str, Path], dtype: torch.dtype
) -> None:
    wanted = Rig(assets["model"], dtype=dtype)
    wanted.submit(0, PROMPT, assets["a"], max_tokens=6, ignore_eos=True)
    wanted.run()

    rig = Rig(assets["model"], dtype=dtype)
    for handle, other in enumerate([assets["b"], None, assets["dora"], assets["b"]]):
        rig.submit(2 * handle, PROMPT, assets["a"], max_tokens=6, ignore_eos=True)
        rig.run()
        rig.engine.clear_idle()
        rig.pool.data.fill_(float("nan"))  # who still reads the old pages gives no tokens
        rig.submit(2 * handle + 1, PROMPT, other, max_tokens=6, ignore_eos=True)
        rig.run()
    assert not rig.failed
    for handle in range(0, 8, 2):
        assert torch.equal(torch.stack(rig.logits[handle]), torch.stack(wanted.logits[0]))


def test_layers_are_found_by_address() -> None:
    run = PageRun.of([3])
    plans = np.zeros((3, 2, 1, PLAN_FIELDS), dtype=np.int64)
    plans[1, 0, 0, 0], plans[2, 1, 0, 0] = 4, 7
    plan = SimpleNamespace(total_rank=4)
    layers: Any = [[{}, {"qkv": plan}, {"o": plan}]]
    made = LayeredSegments(LoraSpans.of([(0, 1)], [run]), ("qkv", "o"), plans, layers)
    assert made.max_rank == 7
    assert made.addresses("qkv").tolist() == [0, plans[1, 0].ctypes.data, 0]
    assert made.addresses("o").tolist() == [0, 0, plans[2, 1].ctypes.data]
    assert [set(each) for each in made] == [set(), {"qkv"}, {"o"}]
    assert made[1] is made[1] and [set(each) for each in made[1:]] == [{"qkv"}, {"o"}]
