"""Embeddings, heads and trained tokens of adapters: what is read of their files, and refused."""

from __future__ import annotations

from typing import Any

import pytest

from storage.adapter.manifest import AdapterManifest, digest_of, frozen_base_name, parse_adapter
from storage.adapter.match import check_base
from storage.errors import (
    AdapterMismatchError,
    BadWeightsError,
    NonFiniteError,
    UnsupportedFeatureError,
)
from tests.storage.samples import (
    SPEC,
    Tensor,
    config,
    head_tensors,
    lora_tensors,
    safetensors,
    tensor,
)

VOCAB, HIDDEN = 32, 16
EMBED = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"
ROWS = "token_adapter.trainable_tokens_delta"
WITH_EMBED = {"target_modules": ["q_proj", "embed_tokens"]}


def embedding_lora(rank: int = 4, vocab: int = VOCAB, hidden: int = HIDDEN) -> dict[str, Tensor]:
    return {
        f"{EMBED}.lora_embedding_A": tensor([rank, vocab], seed=80),
        f"{EMBED}.lora_embedding_B": tensor([hidden, rank], seed=81),
    }


def whole(seed: int = 90, shape: tuple[int, int] = (VOCAB, HIDDEN)) -> Tensor:
    return tensor(shape, seed=seed)


def parsed(tensors: dict[str, Tensor], **fields: Any) -> AdapterManifest:
    weights = safetensors({**lora_tensors(), **tensors})
    return parse_adapter(config(**fields), weights).manifest


def test_lora_on_the_embedding_is_a_module_of_the_vocabulary() -> None:
    fields = {
        **WITH_EMBED,
        "rank_pattern": {"embed_tokens": 3},
        "alpha_pattern": {"model.embed_tokens": 6},
        "use_rslora": False,
    }
    manifest = parsed(embedding_lora(3), **fields)
    module = manifest.modules[-1]
    assert manifest.full_name(module) == "model.embed_tokens"
    assert (module.layer, module.module, module.rank, module.scaling) == (
        None,
        "embed_tokens",
        3,
        2,
    )
    assert (module.a.shape, module.b.shape) == ((3, VOCAB), (HIDDEN, 3))
    check_base(manifest, SPEC)


def test_one_may_be_all_that_an_adapter_has() -> None:
    weights = safetensors(embedding_lora())
    manifest = parse_adapter(config(target_modules=["embed_tokens"]), weights).manifest
    check_base(manifest, SPEC)
    assert (manifest.layers_root, manifest.max_rank) == ("model.", 4)


def test_saved_modules_and_trained_tokens_are_trained_tensors() -> None:
    tensors = {f"{HEAD}.weight": whole(), f"{EMBED}.{ROWS}": tensor([2, HIDDEN], seed=7)}
    manifest = parsed(tensors, modules_to_save=["lm_head"], trainable_token_indices=[31, 4])
    check_base(manifest, SPEC)
    (saved,), (tokens,) = manifest.saved_modules, manifest.trained_tokens
    assert (saved.module, saved.ref.name) == ("lm_head", f"{HEAD}.weight")
    assert (tokens.module, tokens.indices) == ("embed_tokens", (31, 4))
    assert manifest.frozen_copies == ()
    assert manifest.size_bytes - parsed({}).size_bytes == 4 * (VOCAB + 2) * HIDDEN


def test_what_was_not_asked_for_is_a_copy() -> None:
    copies = {f"{HEAD}.weight": whole(), f"{EMBED}.weight": whole(91)}
    manifest = parsed(copies, modules_to_save=["model.embed_tokens"])
    assert [each.module for each in manifest.saved_modules] == ["embed_tokens"]
    assert [frozen_base_name(ref) for ref in manifest.frozen_copies] == ["lm_head.weight"]


def test_equal_tokens_of_a_tied_head_are_saved_once() -> None:
    rows = {f"{EMBED}.{ROWS}": tensor([2, HIDDEN])}
    fields = {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}
    assert [each.module for each in parsed(rows, **fields).trained_tokens] == ["embed_tokens"]


NAN = ("F32", [VOCAB, HIDDEN], b"\x00\x00\xc0\x7f" * (VOCAB * HIDDEN))
TWO = {"trainable_token_indices": [1, 2]}
Q_HEAD = {"target_modules": ["q_proj", "lm_head"]}


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "text"),
    [
        ({}, {"modules_to_save": ["lm_head"]}, BadWeightsError, "no lm_head.weight"),
        ({}, TWO, BadWeightsError, "no rows for them"),
        (
            {f"{EMBED}.{ROWS}": tensor([2, HIDDEN])},
            {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 3]}},
            BadWeightsError,
            "of lm_head in .* no rows",
        ),
        ({f"{EMBED}.{ROWS}": tensor([2, HIDDEN])}, {}, BadWeightsError, "names none"),
        ({f"{EMBED}.{ROWS}": tensor([3, HIDDEN])}, TWO, BadWeightsError, "names 2 tokens"),
        ({f"{EMBED}.{ROWS}": tensor([2])}, TWO, BadWeightsError, r"shape \[2\]"),
        ({f"{EMBED}.{ROWS}": tensor([2, 0])}, TWO, BadWeightsError, r"shape \[2, 0\]"),
        (
            {
                f"{EMBED}.{ROWS}": tensor([2, HIDDEN]),
                f"{EMBED}.{ROWS}.default": tensor([2, HIDDEN]),
            },
            TWO,
            BadWeightsError,
            "twice",
        ),
        (
            {**embedding_lora(), f"{EMBED}.{ROWS}": tensor([2, HIDDEN])},
            {**WITH_EMBED, **TWO},
            UnsupportedFeatureError,
            "does not define both",
        ),
        (
            {**head_tensors(), f"{HEAD}.{ROWS}": tensor([2, HIDDEN])},
            {**Q_HEAD, "trainable_token_indices": {"lm_head": [1, 2]}},
            UnsupportedFeatureError,
            "does not define both",
        ),
        (
            {**head_tensors(), f"{HEAD}.weight": whole()},
            {**Q_HEAD, "modules_to_save": ["lm_head"]},
            BadWeightsError,
            "one of both",
        ),
        (
            {k: v for k, v in embedding_lora().items() if k.endswith("A")},
            WITH_EMBED,
            BadWeightsError,
            "no lora_B",
        ),
        (embedding_lora(3), WITH_EMBED, BadWeightsError, "gives it rank 4"),
        (
            embedding_lora(),
            {**WITH_EMBED, "use_dora": True},
            UnsupportedFeatureError,
            "use_dora cannot be served together",
        ),
        (
            embedding_lora(),
            {**WITH_EMBED, "lora_bias": True},
            UnsupportedFeatureError,
            "lora_bias cannot be served together",
        ),
        (
            {**embedding_lora(), f"{EMBED}.weight": whole()},
            WITH_EMBED,
            BadWeightsError,
            "PEFT would not read it",
        ),
        ({f"{EMBED}.base_layer.weight": whole()}, {}, BadWeightsError, "PEFT would not read it"),
        ({f"{HEAD}.base_layer.weight": whole()}, {}, BadWeightsError, "PEFT would not read it"),
        ({f"{HEAD}.weight": tensor([VOCAB])}, {}, BadWeightsError, "must be .vocab, hidden."),
        ({f"{HEAD}.weight": NAN}, {}, NonFiniteError, "NaN"),
        ({f"{HEAD}.weight": NAN}, {"modules_to_save": ["lm_head"]}, NonFiniteError, "NaN"),
        (
            {f"{EMBED}.{ROWS}": NAN},
            {"trainable_token_indices": [*range(VOCAB)]},
            NonFiniteError,
            "NaN",
        ),
        (
            {
                **embedding_lora(),
                "base_model.model.embed_tokens.lora_embedding_A": tensor([4, VOCAB]),
            },
            WITH_EMBED,
            BadWeightsError,
            "twice|mix",
        ),
    ],
)
def test_files_that_contradict_their_configuration(
    tensors: dict[str, Tensor], fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        parsed(tensors, **fields)


@pytest.mark.parametrize(
    ("tensors", "fields", "reason", "text"),
    [
        (
            {f"{HEAD}.weight": whole(shape=(VOCAB + 8, HIDDEN))},
            {"modules_to_save": ["lm_head"]},
            "SHAPE_MISMATCH",
            "another vocabulary; resize",
        ),
        (
            {f"{EMBED}.weight": whole(shape=(VOCAB, HIDDEN + 1))},
            {"modules_to_save": ["embed_tokens"]},
            "SHAPE_MISMATCH",
            r"\[32, 17\]",
        ),
        ({f"{EMBED}.weight": whole(shape=(VOCAB + 1, HIDDEN))}, {}, "SHAPE_MISMATCH", "resize"),
        (
            {f"{EMBED}.{ROWS}": tensor([2, HIDDEN])},
            {"trainable_token_indices": [VOCAB, 1]},
            "SHAPE_MISMATCH",
            "token 32 of embed_tokens",
        ),
        ({f"{EMBED}.{ROWS}": tensor([2, HIDDEN - 1])}, TWO, "SHAPE_MISMATCH", "15 features"),
        (embedding_lora(vocab=VOCAB + 1), WITH_EMBED, "SHAPE_MISMATCH", "maps 33 to 16"),
        (embedding_lora(hidden=HIDDEN - 1), WITH_EMBED, "SHAPE_MISMATCH", "maps 32 to 15"),
        ({}, WITH_EMBED, "MISSING_MODULES", "model.embed_tokens"),
        ({}, {"target_modules": ".*(q_proj|embed_tokens)"}, "MISSING_MODULES", "embed_tokens"),
        (embedding_lora(), {}, "UNSELECTED_MODULES", "model.embed_tokens"),
        (
            {**head_tensors(), f"{EMBED}.weight": whole()},
            {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            "UNSELECTED_MODULES",
            "lm_head",
        ),
    ],
)
def test_what_does_not_fit_the_base_is_refused(
    tensors: dict[str, Tensor], fields: dict[str, Any], reason: str, text: str
) -> None:
    with pytest.raises(AdapterMismatchError, match=text) as caught:
        check_base(parsed(tensors, **fields), SPEC)
    assert caught.value.reason == reason


def test_saved_modules_are_not_targets() -> None:
    """As in PEFT, whose wrappers exclude each other."""
    fields = {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}
    check_base(parsed({f"{HEAD}.weight": whole()}, **fields), SPEC)


def test_all_of_it_is_in_the_digest() -> None:
    def of(tensors: dict[str, Tensor], **fields: Any) -> str:
        return digest_of(config(**fields), safetensors({**lora_tensors(), **tensors}))

    head, rows = {f"{HEAD}.weight": whole()}, {f"{EMBED}.{ROWS}": tensor([2, HIDDEN])}
    saved = {"modules_to_save": ["lm_head"]}
    digests = [
        of({}),
        of(head),  # goes into the base model, which may be tied
        of(head, **saved),
        of({f"{HEAD}.weight": whole(91)}, **saved),
        of(head, **saved, ensure_weight_tying=True),
        of(rows, **TWO),
        of(rows, trainable_token_indices=[1, 3]),
        of(rows, trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [1, 2]}),
        of({f"{EMBED}.{ROWS}": tensor([2, HIDDEN], seed=1)}, **TWO),
        of(embedding_lora(), **WITH_EMBED),
    ]
    assert len(set(digests)) == len(digests)
    assert of(rows, trainable_token_indices={"model.embed_tokens": [1, 2]}) == of(rows, **TWO)


def test_digests_of_adapters_with_copies_of_the_base_stay() -> None:
    """They were registered before such copies could take effect."""
    fixed = ("F32", [2, 2], bytes(range(16)))
    tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (
            "F32",
            [4, 16],
            bytes(256),
        ),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (
            "F32",
            [16, 4],
            bytes(256),
        ),
        f"{HEAD}.weight": fixed,
        f"{EMBED}.weight": fixed,
    }
    assert digest_of(config(), safetensors(tensors)) == PINNED


PINNED = "54c9bcb7e41c87ce22086b38d93804e3064aeb886f568ce5b7aba22e02c79213"
