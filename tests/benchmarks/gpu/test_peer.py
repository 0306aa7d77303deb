"""The comparison with a peer's kernels, whose place a folder of torch code takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.errors import PeerError
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import Budget, Skipped
from benchmarks.gpu.peer import Case, calls, peer_lora
from benchmarks.gpu.peer_import import import_peer
from benchmarks.gpu.scale import SCALES
from tests.benchmarks.gpu.fake_peer import write_fake_peer


def bench_with(peer: Path | None, folder: Path) -> Bench:
    budget = Budget(1000.0, lambda: 0.0)
    device = torch.device("cpu")
    return Bench(SCALES["tiny"], device, torch.float32, folder, budget, peer=peer)


def test_both_are_timed_on_the_same_weights_and_agree(tmp_path: Path) -> None:
    result = peer_lora(bench_with(write_fake_peer(tmp_path / "peer"), tmp_path))
    assert [case["kind"] for case in result["cases"]] == ["equal", "mixed"]
    for case in result["cases"]:
        assert set(case["groups_s"]) == {"qkv", "o", "gate_up", "down"}
        ours = sum(each["ours"] for each in case["groups_s"].values())
        theirs = sum(each["peer"] for each in case["groups_s"].values())
        assert case["ratio"] == pytest.approx(ours / theirs)
        assert all(each["difference"] < 1e-5 for each in case["groups_s"].values())
    assert "vllm" not in sys.modules


def test_a_peer_that_computes_something_else_is_not_compared_with(tmp_path: Path) -> None:
    peer = write_fake_peer(tmp_path / "peer", factor=1.2)
    with pytest.raises(PeerError) as caught:
        peer_lora(bench_with(peer, tmp_path))
    assert caught.value.reason == "PEER_DIFFERS"


def test_what_the_peer_remembers_of_freed_tensors_is_forgotten(tmp_path: Path) -> None:
    ops = import_peer(write_fake_peer(tmp_path / "peer"))
    table = ops.lora_shrink.__globals__["remembered"].__globals__["_LORA_A_PTR_DICT"]
    for rank in (2, 4):
        case = Case(64, (32,), (rank, rank), 256)
        calls(case, ops, torch.device("cpu"), torch.float32).peers()
        assert len(table) == 1


def test_without_a_peer_it_is_skipped_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="--peer-lora DIR"):
        peer_lora(bench_with(None, tmp_path))


def test_a_folder_without_the_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerError) as caught:
        import_peer(tmp_path)
    assert caught.value.reason == "PEER_MISSING"


def test_kernels_that_cannot_be_imported_leave_nothing_behind(tmp_path: Path) -> None:
    peer = write_fake_peer(tmp_path / "peer")
    file = peer / "vllm" / "lora" / "ops" / "triton_ops" / "lora_expand_op.py"
    file.write_text("raise RuntimeError('another version')")
    with pytest.raises(PeerError, match="another version") as caught:
        import_peer(peer)
    assert caught.value.reason == "PEER_UNUSABLE"
    assert "vllm" not in sys.modules and not any(
        type(finder).__module__ == "benchmarks.gpu.peer_import" for finder in sys.meta_path
    )
