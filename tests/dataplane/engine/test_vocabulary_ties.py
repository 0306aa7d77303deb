"""Embeddings and heads of which one overwrites, or is tied to, the other: loaded as peft does, or
refused by name where peft leaves it open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dataplane.errors import AdapterRefusedError
from tests.dataplane.engine.vocabulary_cases import (
    EMBED,
    FEATURES,
    HEAD,
    Assets,
    Q,
    adapter,
    check,
    put,
)
from tests.helpers.engine import Rig

ROWS = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return Assets(tmp_path_factory.mktemp("tied"), True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return Assets(tmp_path_factory.mktemp("untied"), False)


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
        (
            False,
            {"alora_invocation_tokens": [5]},
            lambda a: {EMBED: moved(a)},
            "BASE_TENSOR_CHANGED",
            "with alora_invocation_tokens; train it as LoRA alone",
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
