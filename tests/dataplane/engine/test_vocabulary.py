"""Adapters that change embeddings and heads, against transformers + peft in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dataplane.errors import AdapterRefusedError, PoolTooSmallError
from dataplane.lora import layout
from dataplane.lora.copier import CpuCopy, PoolCopier
from dataplane.pool.allocator import PageAllocator
from tests.dataplane.engine.vocabulary_cases import (
    EMBED,
    FEATURES,
    HEAD,
    Assets,
    adapter,
    check,
    expected_logits,
    put,
)
from tests.helpers.engine import Rig
from tests.helpers.models import make_model, save_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("qwen2", True), ("gemma3", True)]
)
def test_all_features_in_one_batch_equal_peft(
    architecture: str, tied: bool, device: str, tmp_path: Path
) -> None:
    """Gemma scales embeddings. The second time the prompts' keys are in the prefix cache."""

    def model() -> PreTrainedModel:
        return make_model(architecture, tie_word_embeddings=tied)

    model_dir = save_model(model(), tmp_path / "model")
    references: list[PeftModel | PreTrainedModel] = [model()]
    paths: list[Path | None] = [None]
    for seed, (name, config) in enumerate(FEATURES.items()):
        if tied and name == "tokens-and-head-dora":
            continue  # peft fails on it
        reference, path = adapter(model(), tmp_path / name, seed=seed, **config)
        references.append(reference)
        paths.append(path)
    rig = Rig(model_dir, num_pages=3000, device=device)
    check(rig, [*references, references[2]], [*paths, paths[2]])
    last = {tuple(expected_logits(each, [7, 90, 3, 5], [0])[0].tolist()) for each in references}
    assert len(last) == len(references), "so that each of them can fail"
    check(rig, references, paths, first_handle=100, repeated=2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_head_with_a_bias(device: str, tmp_path: Path) -> None:
    """PEFT saves it with each head that it saves, trained or not."""
    features: dict[str, dict[str, object]] = {
        "head": {"target_modules": ["q_proj", "lm_head"]},
        "head-bias": {"target_modules": ["fc1", "lm_head"], "bias": "lora_only"},
        "head-bias-dora": {
            "target_modules": ["dense", "lm_head"],
            "bias": "lora_only",
            "use_dora": True,
        },
        "embedding-lora": {"target_modules": ["fc2", "embed_tokens"]},
        "embedding": {"target_modules": ["fc2"], "modules_to_save": ["embed_tokens"]},
        "tokens": {
            "target_modules": ["fc2"],
            "trainable_token_indices": {"embed_tokens": [90, 7]},
        },
    }
    model_dir = save_model(make_model("phi"), tmp_path / "model")
    references: list[PeftModel | PreTrainedModel] = [make_model("phi")]
    paths: list[Path | None] = [None]
    for seed, (name, config) in enumerate(features.items()):
        reference, path = adapter(make_model("phi"), tmp_path / name, seed=seed, **config)
        references.append(reference)
        paths.append(path)
    rig = Rig(model_dir, num_pages=3000, device=device)
    check(rig, references, paths)
    refused: dict[str, tuple[dict[str, object], str]] = {
        "own-head": ({"modules_to_save": ["lm_head"]}, "BASE_TENSOR_CHANGED"),
        "head-tokens": ({"trainable_token_indices": {"lm_head": [3]}}, "UNSUPPORTED_FEATURE"),
    }
    for handle, (name, (config, reason)) in enumerate(refused.items(), 100):
        config = {"target_modules": ["q_proj"], **config}
        _, path = adapter(make_model("phi"), tmp_path / name, **config)
        rig.submit(handle, [5, 6], path, max_tokens=2)
        rig.run()
        assert rig.failed[handle].reason == reason


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return Assets(tmp_path_factory.mktemp("tied"), True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return Assets(tmp_path_factory.mktemp("untied"), False)


def test_cut_prompts_preemptions_and_scattered_pages(
    tied: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = PageAllocator.take_run

    def scattered(self: PageAllocator, count: int, owner: str) -> list[int] | None:
        pages = take(self, count, owner)
        return pages and pages[::-1]

    monkeypatch.setattr(PageAllocator, "take_run", scattered)
    rig = Rig(tied.model_dir, max_batch_tokens=7, page_tokens=8, num_pages=80)
    check(rig, tied.references, tied.paths, repeated=3)
    preempted = 0
    for num_pages in (60, 64, 100):  # some of it depends on time
        rig = Rig(tied.model_dir, page_tokens=4, num_pages=num_pages)
        check(rig, tied.references, tied.paths, repeated=2)
        preempted += rig.engine.stats().num_preemptions
    assert preempted


def test_rows_of_all_layers_are_waited_for(untied: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first token's embedding may lie in the last layer's pages."""
    monkeypatch.setattr(PoolCopier, "advance", lambda self, budget_s: None)
    monkeypatch.setattr(CpuCopy, "num_layers_in", property(lambda self: self._layer + 1))
    rig = Rig(untied.model_dir, num_pages=400)
    rig.pool.data.fill_(float("nan"))
    check(rig, untied.references, untied.paths)


def test_only_their_own_rows_pay(untied: Assets) -> None:
    rig = Rig(untied.model_dir)
    seen: list[tuple[int, int]] = []
    build = rig.engine._batches.build

    def noting(chunks):
        batch = build(chunks)
        seen.append((len(batch.embedding), len(batch.head)))
        return batch

    rig.engine._batches.build = noting  # pyright: ignore[reportAttributeAccessIssue]

    def run(*names: str) -> set[tuple[int, int]]:
        seen.clear()
        for handle, name in enumerate(names):
            path = untied.path(name) if name else None
            rig.submit(handle, [5, 7, 9], path, max_tokens=2, ignore_eos=True)
        rig.run()
        return set(seen)

    assert run("", "plain") == {(0, 0)}
    assert run("", "tokens", "plain") == {(1, 0)}
    assert run("head-tokens", "plain", "embedding-lora") == {(1, 1)}
    assert run("both", "both", "") == {(1, 1)}


def test_a_matrix_that_is_the_bases_costs_nothing(untied: Assets, tmp_path: Path) -> None:
    rig = Rig(untied.model_dir)
    plain = rig.loader.load(str(untied.path("plain"))).layout
    saved = ["embed_tokens", "lm_head"]
    _, path = adapter(untied.model(), tmp_path / "same", modules_to_save=saved)
    put(
        path, {EMBED: untied.model().model.embed_tokens.weight, HEAD: untied.model().lm_head.weight}
    )
    same = rig.loader.load(str(path)).layout
    assert same.vocabulary is None and same.elems == plain.elems


def test_what_is_tied_lies_there_once(tied: Assets, tmp_path: Path) -> None:
    rig = Rig(tied.model_dir)
    plain = rig.loader.load(str(tied.path("plain"))).layout
    _, path = adapter(tied.model(), tmp_path / "ensured", **FEATURES["both-ensured"])
    host = rig.loader.load(str(path))
    vocabulary = host.layout.vocabulary
    assert vocabulary is not None
    assert vocabulary.embedding is not None and vocabulary.embedding == vocabulary.head
    assert host.layout.elems - plain.elems == -(-128 // 3) * 64
    host = rig.loader.load(str(tied.path("tokens")))
    vocabulary = host.layout.vocabulary
    assert vocabulary is not None and vocabulary.embedding_tokens is vocabulary.head_tokens
    assert host.layout.elems - plain.elems == 2 * 64  # 4 rows in 3 layers
    assert host.host_bytes == host.nbytes + 4 * 8


def test_one_that_never_fits_is_refused_before_it_takes_memory(
    untied: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(untied.model_dir, num_pages=12)
    taken: list[object] = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **of: taken.append(shape) or empty(*shape, **of)
    )
    with pytest.raises(PoolTooSmallError) as caught:
        rig.loader.load(str(untied.path("both")))
    assert (caught.value.reason, caught.value.metadata["num_pages"]) == ("POOL_TOO_SMALL", "12")
    assert "--pool-bytes" in caught.value.message and not taken
    rig.submit(0, [5], untied.path("both"))
    rig.submit(1, [5], untied.path("tokens"), max_tokens=2)
    rig.run()
    assert isinstance(rig.failed[0], PoolTooSmallError) and rig.tokens[1]


def test_one_that_kernels_cannot_address_is_refused(
    untied: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(untied.model_dir)
    pages = rig.loader.load(str(untied.path("both"))).pages
    elems = pages[0].numel()
    monkeypatch.setattr(layout, "_MAX_LAYER_ELEMS", elems)
    rig.loader.load(str(untied.path("both")))
    monkeypatch.setattr(layout, "_MAX_LAYER_ELEMS", elems - 1)
    with pytest.raises(AdapterRefusedError, match="as LoRA") as caught:
        rig.loader.load(str(untied.path("both")))
    assert caught.value.reason == "ADAPTER_TOO_LARGE"
