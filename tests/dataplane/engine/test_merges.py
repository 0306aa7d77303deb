"""Merges against peft's add_weighted_adapter in float32: what modules add, and whole logits."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

from storage.adapter.manifest import ParsedAdapter, parse_adapter
from storage.adapter.match import check_base
from storage.base_model import BaseModelSpec
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS
from storage.merge import arithmetic
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe, make_recipe
from tests.helpers.engine import Rig
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

Adapters = list[tuple[str, int, dict[str, object]]]
# Other ranks, scalings, modules and layers in each. The first has no use_rslora or layers of its
# own: peft would give those to the merge, and so another scaling than its sums are made for.
ANY: Adapters = [
    ("qv", 3, {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 7}}),
    ("with-head", 8, {"use_rslora": True}),
    ("mlp", 4, {"layers_to_transform": [0, 2]}),
    ("embedding", 2, {}),
]
EQUAL_RANKS: Adapters = [
    ("all-linear", 8, {}),
    ("with-head", 8, {"use_rslora": True}),
    ("attention", 8, {"layers_to_transform": [1, 2]}),
]
CASES = [
    ("cat", {}, ANY),
    ("linear", {}, EQUAL_RANKS),
    ("magnitude_prune", {"density": 0.3}, EQUAL_RANKS),
    ("ties", {"density": 0.4}, EQUAL_RANKS),
    ("ties", {"density": 1.0, "majority_sign": "frequency"}, EQUAL_RANKS),
    ("dare_linear", {"density": 0.7}, EQUAL_RANKS),
    ("dare_ties", {"density": 0.6, "majority_sign": "frequency", "seed": 7}, EQUAL_RANKS),
]
WEIGHTS = [1.5, -0.6, 0.8, 0.3]
PROMPT = [5, 6, 7, 8, 90, 33]
SPEC = BaseModelSpec(
    name="tiny",
    num_layers=3,
    layer_modules={
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (64, 32),
        "self_attn.v_proj": (64, 32),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (64, 112),
        "mlp.up_proj": (64, 112),
        "mlp.down_proj": (112, 64),
    },
    outer_modules={"lm_head": (64, 128)},
)


@pytest.mark.parametrize(("strategy", "options", "adapters"), CASES)
def test_a_merge_is_what_peft_makes(
    strategy: str,
    options: dict[str, object],
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("llama")
    model_dir = save_model(model, tmp_path / "model")
    paths: list[Path] = []
    for index, (targets, rank, config) in enumerate(adapters):
        paths.append(tmp_path / f"adapter{index}")
        model = add_adapter(
            model,
            paths[-1].name,
            paths[-1],
            rank=rank,
            target_modules=TARGETS[targets],
            seed=100 + index,
            size=0.05,
            **config,
        )
        drop_copies(paths[-1])
    assert isinstance(model, PeftModel)
    parts = [parsed(path) for path in paths]
    recipe = recipe_of(strategy, parts, options)
    ordered = [next(p for p in parts if p.manifest.digest == c.digest) for c in recipe.components]
    if recipe.seed is not None:
        draw_as_we_do(monkeypatch, recipe, ordered)
    with_peft(model, [path.name for path in paths], strategy, options)

    files = merged_files(recipe, ordered, DEFAULT_LIMITS)
    merged = parse_adapter(files.config, files.weights)
    check_base(merged.manifest, SPEC)
    compared = 0
    for module in merged.manifest.modules:
        ours = matrix(merged, module.b) @ matrix(merged, module.a) * module.scaling
        name = f"base_model.model.{merged.manifest.full_name(module)}"
        theirs = model.get_submodule(name).get_delta_weight("merged")
        theirs = theirs.T if module.module == "embed_tokens" else theirs
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
        compared += 1
    assert compared == len({(m.layer, m.module) for p in parts for m in p.manifest.modules})
    check_logits(model, model_dir, write(tmp_path / "merged", files))


def check_logits(model: PeftModel, model_dir: Path, adapter: Path) -> None:
    rig = Rig(model_dir)
    rig.submit(0, PROMPT, adapter, max_tokens=12, ignore_eos=True)
    rig.submit(1, PROMPT, None, max_tokens=12, ignore_eos=True)
    rig.run()
    assert not rig.failed
    tokens = rig.tokens[0]
    assert tokens != rig.tokens[1], "the merge must change the answer"
    model.set_adapter("merged")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[*PROMPT, *tokens[:-1]]])).logits[0]
    expected = expected[len(PROMPT) - 1 :]
    torch.testing.assert_close(torch.stack(rig.logits[0]), expected, rtol=0, atol=1e-4)


def test_peft_loads_what_we_write(tmp_path: Path) -> None:
    """Its names, patterns and file are those of a PEFT directory."""
    model = make_model("llama")
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, rank, targets in zip(paths, (4, 6), ("qv", "attention"), strict=True):
        model = add_adapter(
            model, path.name, path, rank=rank, target_modules=TARGETS[targets], seed=rank
        )
    parts = [parsed(path) for path in paths]
    recipe = recipe_of("cat", parts, {})
    ordered = [next(p for p in parts if p.manifest.digest == c.digest) for c in recipe.components]
    directory = write(tmp_path / "m", merged_files(recipe, ordered, DEFAULT_LIMITS))
    assert isinstance(model, PeftModel)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that are missing or unexpected
        warnings.simplefilter("ignore", FutureWarning)
        loaded = peft.PeftModel.from_pretrained(make_model("llama"), str(directory))
    with_peft(model, ["a", "b"], "cat", {})
    model.set_adapter("merged")
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        ours, theirs = loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def parsed(path: Path) -> ParsedAdapter:
    return parse_adapter((path / CONFIG_NAME).read_bytes(), (path / WEIGHTS_NAME).read_bytes())


def drop_copies(path: Path) -> None:
    """As with save_embedding_layers=False."""
    weights = load_file(path / WEIGHTS_NAME)
    kept = {name: value for name, value in weights.items() if ".lora_" in name}
    save_file(kept, path / WEIGHTS_NAME, metadata={"format": "pt"})


def recipe_of(strategy: str, parts: list[ParsedAdapter], options: dict[str, object]) -> Recipe:
    components = [
        Component(f"part{index}@1", weight, part.manifest.digest, f"/part{index}")
        for index, (part, weight) in enumerate(zip(parts, WEIGHTS, strict=False))
    ]
    return make_recipe(strategy, components, **options)  # pyright: ignore[reportArgumentType]


def with_peft(
    model: PeftModel, names: list[str], strategy: str, options: dict[str, object]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(
            names,
            WEIGHTS[: len(names)],
            "merged",
            combination_type=strategy,
            density=options.get("density"),
            majority_sign_method=options.get("majority_sign", "total"),
        )


def draw_as_we_do(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, parts: list[ParsedAdapter]
) -> None:
    """Gives peft, whose draws are torch's, those of the recipe, by the tensor that it prunes."""
    assert recipe.density is not None
    density, masks = recipe.density, dict[bytes, torch.Tensor]()
    for part in parts:
        for module in part.manifest.modules:
            for kind, ref in (("A", module.a), ("B", module.b)):
                tensor = matrix(part, ref)
                name = part.manifest.full_name(module)
                key = f"{recipe.seed} {part.manifest.digest} {name} {kind}".encode()
                drawn = arithmetic.keep_drawn(np.ones(tensor.numel(), np.float32), density, key)
                mask = torch.from_numpy(drawn != 0).reshape(tensor.shape)
                share = mask.float().mean().item()
                assert abs(share - density) < 4 * (density / mask.numel()) ** 0.5
                masks[tensor.numpy().tobytes()] = mask

    def random_pruning(tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        assert rescale
        return tensor * masks[tensor.contiguous().numpy().tobytes()] / density

    monkeypatch.setattr(merge_utils, "random_pruning", random_pruning)


def matrix(parsed: ParsedAdapter, ref) -> torch.Tensor:
    values = np.frombuffer(parsed.view(ref), "<f4").reshape(ref.shape)
    return torch.from_numpy(values.copy())


def write(path: Path, files: AdapterFiles) -> Path:
    path.mkdir()
    (path / CONFIG_NAME).write_bytes(files.config)
    (path / WEIGHTS_NAME).write_bytes(files.weights)
    return path
