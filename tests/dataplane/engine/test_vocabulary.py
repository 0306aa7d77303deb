"""Adapters that change embeddings and heads, against transformers + peft in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from dataplane.errors import AdapterRefusedError, PoolTooSmallError
from dataplane.lora import layout
from dataplane.lora.copier import CpuCopy, PoolCopier
from dataplane.pool.allocator import PageAllocator
from tests.helpers.engine import Rig
from tests.helpers.models import add_adapter, make_model, save_model

Q = ["q_proj", "down_proj"]
TOKENS = [90, 7, 33, 5]  # in no order; prompts have some of them
NEW_TOKENS = 12
TOLERANCE = 1e-4

FEATURES: dict[str, dict[str, object]] = {
    "plain": {"target_modules": Q},
    "embedding-lora": {"target_modules": [*Q, "embed_tokens"]},
    "only-embedding-lora": {"target_modules": ["embed_tokens"], "use_rslora": True},
    "both-lora": {
        "target_modules": "(.*_proj|lm_head|.*embed_tokens)",
        "rank_pattern": {"embed_tokens": 3},
        "alpha_pattern": {"embed_tokens": 5},
    },
    "tokens": {"target_modules": Q, "trainable_token_indices": TOKENS},
    "tokens-and-head-lora": {
        "target_modules": [*Q, "lm_head"],
        "trainable_token_indices": TOKENS,
    },
    "tokens-and-head-dora": {
        "target_modules": [*Q, "lm_head"],
        "trainable_token_indices": TOKENS,
        "use_dora": True,
    },
    "head-tokens": {"target_modules": Q, "trainable_token_indices": {"lm_head": [100, 3, 50]}},
    "different-tokens": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [100, 3]},
    },
    "equal-tokens": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS},
    },
    "embedding": {"target_modules": Q, "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "both": {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"]},
    "both-ensured": {
        "target_modules": Q,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "ensure_weight_tying": True,
    },
    "embedding-and-head-lora": {
        "target_modules": [*Q, "lm_head"],
        "modules_to_save": ["embed_tokens"],
        "use_dora": True,
    },
    "head-and-embedding-lora": {
        "target_modules": [*Q, "embed_tokens"],
        "modules_to_save": ["lm_head"],
    },
}


def adapter(
    model: PreTrainedModel, path: Path, *, seed: int = 0, **config: object
) -> tuple[PeftModel, Path]:
    config = {"target_modules": Q, **config}
    return add_adapter(model, path.name, path, rank=6, seed=seed, size=0.15, **config), path


@torch.no_grad()
def expected_logits(model: PeftModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    return model(input_ids=ids).logits[0, len(prompt) - 1 :]


def check(
    rig: Rig,
    references: list[PeftModel | PreTrainedModel],
    paths: list[Path | None],
    *,
    first_handle: int = 0,
    repeated: int = 1,
) -> None:
    """One request for each of the paths, all at once. repeated: how often a prompt is said."""
    requests: list[tuple[int, list[int]]] = []
    for at, path in enumerate(paths):
        prompt = [3 + at % 3, 7, 90, 33, 64, 127, 5, 7][: 8 - at % 4] * repeated
        requests.append((first_handle + at, prompt))
        rig.submit(*requests[at], path, max_tokens=NEW_TOKENS, ignore_eos=True)
    rig.run()
    for (handle, prompt), reference, path in zip(requests, references, paths, strict=True):
        assert handle not in rig.failed, (path, rig.failed[handle])
        tokens = rig.tokens[handle]
        expected = expected_logits(reference, prompt, tokens)
        actual = torch.stack(rig.logits[handle])
        assert (actual - expected).abs().max() <= TOLERANCE, path
        assert expected.argmax(-1).tolist() == tokens, path


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


SOME = ["tokens", "embedding-lora", "both", "head-tokens", "plain"]


class Assets:
    """A tied or an untied model with some adapters, and what peft makes of them."""

    def __init__(self, root: Path, tied: bool) -> None:
        self.architecture = "qwen2" if tied else "llama"
        self.root = root
        self.tied = tied
        self.model_dir = save_model(self.model(), root / "model")
        made = [adapter(self.model(), root / name, **FEATURES[name]) for name in SOME]
        self.references: list[PeftModel | PreTrainedModel] = [self.model()]
        self.references += [reference for reference, _ in made]
        self.paths: list[Path | None] = [None, *(path for _, path in made)]

    def model(self) -> PreTrainedModel:
        return make_model(self.architecture, tie_word_embeddings=self.tied)

    def path(self, name: str) -> Path:
        return self.root / name


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


EMBED = "base_model.model.model.embed_tokens.weight"
HEAD = "base_model.model.lm_head.weight"
ROWS = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"


def put(path: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """None removes."""
    file = path / "adapter_model.safetensors"
    tensors = {**load_file(file), **{k: v for k, v in changes.items() if v is not None}}
    kept = {k: v.detach().clone() for k, v in tensors.items() if changes.get(k, v) is not None}
    save_file(kept, file)


def moved(assets: Assets, seed: int = 5) -> torch.Tensor:
    weight = assets.model().model.embed_tokens.weight.detach()
    return weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("names", [[EMBED], [HEAD], [EMBED, HEAD]])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("saved", [[], ["embed_tokens"], ["lm_head"]])
def test_copies_that_differ_are_loaded_as_peft_does(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    names: list[str],
    is_tied: bool,
    saved: list[str],
) -> None:
    """Into the base model, where nobody asked for a matrix of its own. Tied, that is both's."""
    assets: Assets = request.getfixturevalue("tied" if is_tied else "untied")
    _, path = adapter(assets.model(), tmp_path / "a", modules_to_save=saved or None)
    put(path, dict.fromkeys(names, moved(assets)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = PeftModel.from_pretrained(assets.model(), str(path)).eval()
    check(Rig(assets.model_dir), [reference], [path])


def test_a_changed_embedding_below_a_lora(tied: Assets, untied: Assets, tmp_path: Path) -> None:
    for assets in (tied, untied):
        targets = FEATURES["embedding-lora"]
        _, path = adapter(assets.model(), tmp_path / assets.architecture, **targets)
        put(path, {EMBED.replace(".weight", ".base_layer.weight"): moved(assets)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = PeftModel.from_pretrained(assets.model(), str(path)).eval()
        check(Rig(assets.model_dir), [reference], [path])


def both_differ(assets: Assets) -> dict[str, torch.Tensor | None]:
    return {EMBED: moved(assets), HEAD: moved(assets, 6)}


@pytest.mark.parametrize(
    ("is_tied", "config", "change", "reason", "text"),
    [
        (True, {}, both_differ, "TYING_UNCLEAR", "overwrite the other"),
        (
            True,
            {},
            lambda a: {EMBED: moved(a), HEAD: a.model().lm_head.weight},
            "TYING_UNCLEAR",
            "",
        ),
        (True, FEATURES["both-ensured"], both_differ, "TYING_UNCLEAR", "different weights"),
        (True, FEATURES["both-ensured"], lambda a: {HEAD: None}, "TYING_INCOMPLETE", "no lm_head"),
        (
            True,
            {"modules_to_save": ["embed_tokens"], "trainable_token_indices": {"lm_head": [1]}},
            lambda a: {HEAD: moved(a)},
            "BASE_TENSOR_CHANGED",
            "with trainable_token_indices",
        ),
        (
            False,
            {"target_modules": ["lm_head", *Q]},
            lambda a: {HEAD.replace(".weight", ".base_layer.weight"): moved(a)},
            "BASE_TENSOR_CHANGED",
            "below a LoRA on lm_head",
        ),
        (
            True,
            {"target_modules": ["lm_head", *Q]},
            lambda a: {EMBED: moved(a)},
            "BASE_TENSOR_CHANGED",
            "below a LoRA on lm_head",
        ),
        (False, {"trainable_token_indices": [1]}, both_differ, "BASE_TENSOR_CHANGED", "with train"),
        (
            False,
            FEATURES["equal-tokens"],
            lambda a: {ROWS: None},
            "TYING_INCOMPLETE",
            "another one",
        ),
    ],
)
def test_what_peft_leaves_open_is_refused_by_name(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    is_tied: bool,
    config: dict[str, object],
    change: Callable[[Assets], dict[str, torch.Tensor | None]],
    reason: str,
    text: str,
) -> None:
    assets: Assets = request.getfixturevalue("tied" if is_tied else "untied")
    _, path = adapter(assets.model(), tmp_path / "a", **config)
    put(path, change(assets))
    rig = Rig(assets.model_dir)
    rig.submit(0, [5, 6], path, max_tokens=2)
    rig.submit(1, [5, 6], None, max_tokens=2, ignore_eos=True)
    rig.run()
    assert len(rig.tokens[1]) == 2 and 0 not in rig.tokens
    error = rig.failed[0]
    assert isinstance(error, AdapterRefusedError) and error.metadata["digest"]
    assert error.reason == reason and text in error.message


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"target_modules": [*Q, "embed_tokens"]}, "ties a LoRA on lm_head"),
        (FEATURES["different-tokens"], "different tokens"),
        (
            {"modules_to_save": ["lm_head"], "trainable_token_indices": [1]},
            "is in modules_to_save",
        ),
        (FEATURES["tokens-and-head-dora"], "has DoRA"),
        (
            {"modules_to_save": ["embed_tokens"], "trainable_token_indices": {"lm_head": [1]}},
            "there is trained tokens",
        ),
        (
            {"modules_to_save": ["embed_tokens"], "target_modules": [*Q, "lm_head"]},
            "there is a LoRA",
        ),
    ],
)
def test_ties_that_the_base_has_and_the_adapter_did_not(
    tied: Assets, untied: Assets, tmp_path: Path, config: dict[str, object], text: str
) -> None:
    """Trained on an untied base of equal shapes, which serves it."""
    _, path = adapter(untied.model(), tmp_path / "a", ensure_weight_tying=True, **config)
    if text.startswith("there is"):  # tied ones are saved under both names
        head = HEAD.replace(".weight", ".base_layer.weight")
        head = head if "LoRA" in text else HEAD
        put(path, {EMBED: moved(untied), head: untied.model().lm_head.weight})
    assert Rig(untied.model_dir).loader.load(str(path)).layout.vocabulary is not None
    with pytest.raises(AdapterRefusedError, match=text) as caught:
        Rig(tied.model_dir).loader.load(str(path))
    assert caught.value.reason == "TYING_UNCLEAR"
