"""Captured steps: which steps they are, and that nobody's tokens change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dataplane.engine import graphs
from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.engine.graph_setup import graph_setup
from dataplane.engine_options import EngineOptions
from dataplane.errors import DataPlaneError
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig, adapter_of
from tests.helpers.graphs import Recorder
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model
from tests.helpers.traffic import check_traffic, meet_traffic, random_requests

BUCKETS = GraphBuckets(sizes=(1, 2, 4), num_blocks=(4, 32), ranks=(4, 8))
PROMPT = [5, 6, 7, 8, 9]
ADAPTERS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("a", "all-linear", 4, {}),
    ("b", "qv", 8, {}),
    ("wide", "attention", 9, {}),  # no bucket holds it
    ("dora", "qv", 4, {"use_dora": True}),
    ("head", "with-head", 2, {}),
    ("tokens", "qv", 4, {"trainable_token_indices": [5, 9]}),
    ("own-head", "qv", 4, {"modules_to_save": ["lm_head"]}),
]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    shape = {"num_hidden_layers": 2}
    paths = {"model": save_model(make_model("llama", **shape), root / "model")}
    for index, (name, targets, rank, config) in enumerate(ADAPTERS):
        paths[name] = root / name
        model = make_model("llama", **shape)
        add_adapter(
            model,
            name,
            paths[name],
            rank=rank,
            target_modules=TARGETS[targets],
            seed=index,
            **config,
        )
    return paths


def rig_of(
    assets: dict[str, Path],
    recorder: Recorder | None = None,
    buckets: GraphBuckets = BUCKETS,
    **options: Any,
) -> Rig:
    recorder = recorder or Recorder()
    return Rig(assets["model"], graphs=recorder.setup(buckets), **options)


def num_steps(rig: Rig) -> int:
    return rig.engine.stats().num_graph_steps


def test_rows_of_one_adapter_are_replayed_in_tiles_of_their_own(assets: dict[str, Path]) -> None:
    """And those of few, and of many again: tiles are cut anew where only the number changes."""
    buckets = GraphBuckets(sizes=(16,), num_blocks=(4,), ranks=(4, 8))
    rigs = [rig_of(assets, buckets=buckets, max_running=16), Rig(assets["model"], max_running=16)]
    turns: list[list[str | None]] = [["a"] * 16, ["a", "b", None, "a"] * 4, ["a"] * 16, ["b"] * 9]
    for rig in rigs:
        for turn, names in enumerate(turns):
            for at, name in enumerate(names):
                prompt = [5 + (turn * 16 + at * 7 + each) % 120 for each in range(3 + at % 4)]
                adapter = assets[name] if name else None
                rig.submit(100 * turn + at, prompt, adapter, max_tokens=4, ignore_eos=True)
            rig.run()
    replayed, eager = rigs
    assert num_steps(replayed) == 3 * len(turns)
    assert replayed.tokens == eager.tokens


def test_what_has_more_rows_than_any_graph_runs_eagerly(assets: dict[str, Path]) -> None:
    recorder = Recorder()
    rig = rig_of(assets, recorder)
    assert recorder.num_captured == len(BUCKETS.variants) == 18
    report = rig.engine.graphs and rig.engine.graphs.report
    assert report is not None and report.capture_s > 0.0
    assert report[0] == 18 and report[2:] == (18_000, 0)
    stats = rig.engine.stats()
    assert (stats.num_graphs, stats.graph_bytes) == (18, 18_000)
    assert stats.graph_capture_s == report.capture_s
    rig.submit(0, PROMPT, assets["a"], max_tokens=6, ignore_eos=True)
    rig.run()
    assert num_steps(rig) == recorder.num_replayed == 5
    rig.submit(1, PROMPT, None, max_tokens=6, ignore_eos=True)
    rig.submit(2, PROMPT[:4], assets["b"], max_tokens=6, ignore_eos=True)
    rig.submit(3, PROMPT[:3], assets["a"], max_tokens=6, ignore_eos=True)
    rig.run()
    assert num_steps(rig) == 5 + 5
    calm = Rig(assets["model"])
    for handle, (length, name) in enumerate([(5, "a"), (5, ""), (4, "b"), (3, "a")]):
        adapter = assets[name] if name else None
        calm.submit(handle, PROMPT[:length], adapter, max_tokens=6, ignore_eos=True)
    calm.run()
    assert rig.tokens == calm.tokens


def test_steps_with_drafts_run_eagerly_and_the_others_behind_them_are_replayed(
    assets: dict[str, Path],
) -> None:
    """Of more drafts than sequences may run."""
    rig, calm = rig_of(assets, max_running=3, speculative_tokens=8), Rig(assets["model"])
    for each in (calm, rig):
        if each is rig:
            force_drafts(rig, calm.tokens)
        for handle, penalty in enumerate((0.0, 0.0, 0.1)):  # which does not draft
            each.submit(
                handle,
                PROMPT[handle:],
                assets["a"] if handle else None,
                max_tokens=24,
                ignore_eos=True,
                frequency_penalty=penalty,
            )
        each.run()
    assert rig.tokens == calm.tokens
    assert rig.engine.stats().num_accepted_tokens > 0 and num_steps(rig) >= 8


@pytest.mark.parametrize("name", ["wide", "dora", "head", "tokens", "own-head"])
def test_what_no_graph_serves_runs_eagerly_and_so_does_all_beside_it(
    assets: dict[str, Path], name: str
) -> None:
    rig, calm = rig_of(assets), Rig(assets["model"])
    for each in (rig, calm):
        each.submit(0, PROMPT, assets["a"], max_tokens=9, ignore_eos=True)
        each.submit(1, PROMPT, assets[name], max_tokens=5, ignore_eos=True)
        each.run()
    assert num_steps(rig) == 4  # of the one that goes on alone
    assert rig.tokens == calm.tokens


def test_more_sequences_than_the_largest_graph_run_eagerly(assets: dict[str, Path]) -> None:
    rig = rig_of(assets)
    for handle in range(5):
        rig.submit(handle, PROMPT, None, max_tokens=4 + 2 * (handle > 0), ignore_eos=True)
    rig.run()
    assert num_steps(rig) == 2


def test_a_sequence_longer_than_any_graph_runs_eagerly(assets: dict[str, Path]) -> None:
    buckets = GraphBuckets((1,), (2,), (4,))  # 16 tokens
    rig, calm = rig_of(assets, buckets=buckets), Rig(assets["model"])
    for each in (rig, calm):
        each.submit(0, PROMPT, assets["a"], max_tokens=20, ignore_eos=True)
        each.run()
    assert num_steps(rig) == 11 and rig.tokens == calm.tokens


def test_a_replay_waits_for_the_whole_of_an_adapter_that_is_on_its_way(
    assets: dict[str, Path],
) -> None:
    rig = rig_of(assets)
    rig.submit(0, PROMPT, assets["a"], max_tokens=12, ignore_eos=True)
    for _ in range(3):
        rig.step()
    before = num_steps(rig)
    assert before > 0
    resident = rig.engine._resident.get(adapter_of(assets["a"]).digest)
    assert resident is not None
    done = resident.copy

    class OnItsWay:
        remaining_bytes = 1
        waited: list[int] = []  # noqa: RUF012

        def wait(self, layer: int) -> None:
            self.waited.append(layer)

    resident.copy = OnItsWay()  # pyright: ignore[reportAttributeAccessIssue]
    rig.step()
    rig.step()
    assert num_steps(rig) == before + 2
    resident.copy = done
    rig.run()
    assert len(rig.tokens[0]) == 12
    assert OnItsWay.waited == [1, 1], "for the last layer, once a step"


PROMPT_BUCKETS = GraphBuckets((1, 2, 4), (4, 32), (4, 8), prompt_sizes=(8, 16), prompt_blocks=8)


def test_short_prompts_are_replayed_beside_decode(assets: dict[str, Path]) -> None:
    rig, calm = rig_of(assets, buckets=PROMPT_BUCKETS), Rig(assets["model"])
    for each in (rig, calm):
        each.submit(0, PROMPT, assets["a"], max_tokens=9, ignore_eos=True)
        for handle, name in enumerate(["b", "a", None], 1):
            each.step()
            prompt = [20 + 3 * handle + at for at in range(3 + handle)]
            each.submit(
                handle, prompt, assets[name] if name else None, max_tokens=5, ignore_eos=True
            )
        each.run()
    assert num_steps(rig) == 9 and rig.tokens == calm.tokens, "none of the steps ran eagerly"


def test_a_prompt_that_is_scored_runs_eagerly(assets: dict[str, Path]) -> None:
    rig, plain = rig_of(assets), Rig(assets["model"])
    for each in (rig, plain):
        each.submit(0, PROMPT[:4], max_tokens=4, prompt_logprobs=1)
        each.run()
    assert rig.prompt_logprobs == plain.prompt_logprobs and len(rig.prompt_logprobs[0]) == 3
    assert rig.tokens == plain.tokens and num_steps(rig) == 3


@pytest.mark.parametrize(
    ("length", "replayed"),
    [(8, True), (9, True), (16, True), (17, False)],
)
def test_a_prompt_takes_a_row_for_each_token(
    assets: dict[str, Path], length: int, replayed: bool
) -> None:
    prompt = [3 + 5 * at % 120 for at in range(length)]
    rig, calm = (
        rig_of(assets, buckets=PROMPT_BUCKETS, max_batch_tokens=32),
        Rig(assets["model"]),
    )
    for each in (rig, calm):
        each.submit(0, prompt, assets["a"], max_tokens=1, ignore_eos=True)
        each.run()
    assert num_steps(rig) == replayed and rig.tokens == calm.tokens


def test_a_prompt_in_chunks_asks_for_a_token_at_its_end_only(assets: dict[str, Path]) -> None:
    prompt = [3 + 5 * at % 120 for at in range(40)]
    limits = {"max_running": 4, "max_batch_tokens": 12}
    rig, calm = rig_of(assets, buckets=PROMPT_BUCKETS, **limits), Rig(assets["model"])
    for each in (rig, calm):
        each.submit(0, prompt, assets["b"], max_tokens=3, ignore_eos=True)
        each.run()
    # 8 blocks are 64 tokens: chunks of 12, 12, 12 and 4 tokens, and two steps of one.
    assert num_steps(rig) == 6 and rig.tokens == calm.tokens


def test_prompts_that_read_many_keys_run_eagerly(
    assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_MAX_PROMPT_KEYS", 8 * 9 // 2)
    for length, replayed in ((8, True), (9, False)):
        rig = rig_of(assets, buckets=PROMPT_BUCKETS)
        rig.submit(0, [5 + at for at in range(length)], None, max_tokens=1, ignore_eos=True)
        rig.run()
        assert num_steps(rig) == replayed


def test_graphs_without_memory_are_left_out(assets: dict[str, Path]) -> None:
    recorder = Recorder(room=7)  # all of size 4, and size 2 with the most of everything
    rig = rig_of(assets, recorder)
    report = rig.engine.graphs and rig.engine.graphs.report
    assert report is not None and (report.num_graphs, report.num_left_out) == (7, 11)
    rig.submit(0, PROMPT, None, max_tokens=4, ignore_eos=True)
    rig.run()
    assert num_steps(rig) == 0 and len(rig.tokens[0]) == 4
    for handle in range(1, 4):
        rig.submit(handle, PROMPT, None, max_tokens=4, ignore_eos=True)
    rig.run()
    assert num_steps(rig) == 3


def test_capturing_and_padding_leave_no_trace_in_any_page_that_can_be_taken(
    assets: dict[str, Path],
) -> None:
    rig = rig_of(assets, num_pages=40)
    pool = rig.pool
    assert pool.num_pages == 40 and pool.padding_page == 40
    assert not bool(pool.data[:, :40].any())
    rig.engine.check_integrity()
    # What is in the padding page, and in pages that nobody owns, reaches nobody.
    pool.data.fill_(float("nan"))
    for handle, name in enumerate(["a", "b", None]):
        rig.submit(handle, PROMPT, assets[name] if name else None, max_tokens=8, ignore_eos=True)
    rig.run()
    assert num_steps(rig) == 7 and not rig.failed
    calm = Rig(assets["model"])
    for handle, name in enumerate(["a", "b", None]):
        calm.submit(handle, PROMPT, assets[name] if name else None, max_tokens=8, ignore_eos=True)
    calm.run()
    assert rig.tokens == calm.tokens


@settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6))
def test_tokens_are_those_of_eager_steps_whatever_happens(
    assets: dict[str, Path], seed: int
) -> None:
    """Requests that come, stop, are aborted and preempted: rows and tables change all the time."""
    dice = random.Random(seed)
    num_pages = dice.randrange(18, 25)  # the largest request needs 18
    limits = {"max_running": 5, "max_batch_tokens": 24}
    buckets = dice.choice([BUCKETS, PROMPT_BUCKETS])
    rig = rig_of(assets, buckets=buckets, num_pages=num_pages, **limits)
    calm = Rig(assets["model"], pipeline_depth=1)
    requests = random_requests(dice, assets, 12)
    asked, aborted = meet_traffic(rig, requests, dice, (0, 1, 5, 9))
    for handle, request in enumerate(asked):
        request.submit(calm, handle)
    calm.run()
    assert num_steps(rig) > 10
    check_traffic(rig, calm, aborted, num_pages)


def test_they_are_for_gpus_only() -> None:
    cpu = torch.device("cpu")
    options = EngineOptions(model_dir="", model_name="")
    assert graph_setup(options, cpu, 100) is None
    off = EngineOptions(model_dir="", model_name="", cuda_graphs=False)
    assert graph_setup(off, torch.device("cuda"), 100) is None
    on = EngineOptions(model_dir="", model_name="", cuda_graphs=True)
    with pytest.raises(DataPlaneError, match="--no-cuda-graphs") as caught:
        graph_setup(on, cpu, 100)
    assert caught.value.reason == "GRAPHS_NEED_CUDA"
