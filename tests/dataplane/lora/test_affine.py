"""DoRA and biases: what cannot be applied exactly is refused, and costs plain LoRA nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataplane.errors import AdapterRefusedError
from tests.helpers.engine import Rig
from tests.helpers.models import ATTENTION, TARGETS, add_adapter, make_model, save_model


def adapter(path: Path, architecture: str = "qwen2", **config: object) -> Path:
    config = {"target_modules": TARGETS["qv"], **config}
    add_adapter(make_model(architecture), path.name, path, rank=4, seed=1, **config)
    return path


def edit(path: Path, change) -> None:
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def refusal(rig: Rig, path: Path) -> AdapterRefusedError:
    rig.submit(0, [5, 6, 7], path, max_tokens=4, ignore_eos=True)
    rig.submit(1, [5, 6, 7], None, max_tokens=4, ignore_eos=True)
    rig.run()
    assert len(rig.tokens[1]) == 4
    assert 0 not in rig.tokens
    error = rig.failed[0]
    assert isinstance(error, AdapterRefusedError)
    assert error.metadata
    return error


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(save_model(make_model("qwen2"), tmp_path / "model"))


def remove_bias(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.2.self_attn.v_proj.base_layer.bias"]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_trained_bias_that_was_not_saved(rig: Rig, tmp_path: Path, bias: str) -> None:
    path = adapter(tmp_path / "a", bias=bias)
    edit(path, remove_bias)
    error = refusal(rig, path)
    assert error.reason == "BIAS_MISSING"
    assert "self_attn.v_proj of layer 2" in error.message


def test_lora_only_needs_only_its_own_biases(rig: Rig, tmp_path: Path) -> None:
    """k_proj's bias is neither in the file nor missed."""
    path = adapter(tmp_path / "a", bias="lora_only")
    assert not any("k_proj" in name for name in load_file(path / "adapter_model.safetensors"))
    rig.submit(0, [5, 6, 7], path, max_tokens=4, ignore_eos=True)
    rig.run()
    assert len(rig.tokens[0]) == 4


def test_a_bias_that_the_base_does_not_have(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a", bias="all")
    rig = Rig(save_model(make_model("llama"), tmp_path / "llama"))
    error = refusal(rig, path)
    assert error.reason == "BIAS_UNKNOWN"


def test_biases_that_nobody_has_change_nothing(tmp_path: Path) -> None:
    """bias="all" on a model without biases is plain LoRA."""
    path = adapter(tmp_path / "a", "llama", bias="all")
    plain = adapter(tmp_path / "plain", "llama")
    rig = Rig(save_model(make_model("llama"), tmp_path / "llama"))
    rig.submit(0, [5, 6, 7], path, max_tokens=8, ignore_eos=True)
    rig.submit(1, [5, 6, 7], plain, max_tokens=8, ignore_eos=True)
    rig.run()
    assert rig.tokens[0] == rig.tokens[1]
    assert rig.loader.load(str(path)).layout.affine == ()


def test_dora_on_a_row_without_direction(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3] = 0.0
    model_dir = save_model(model, tmp_path / "model")
    path = adapter(tmp_path / "a", "llama", use_dora=True)

    def no_update(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][3] = 0.0

    edit(path, no_update)
    error = refusal(Rig(model_dir), path)
    assert error.reason == "DORA_DIRECTION_ZERO"
    assert "layers.1.self_attn.q_proj" in error.message


def test_vectors_are_paid_for_only_where_they_are(rig: Rig, tmp_path: Path) -> None:
    """DoRA takes a scale and, where the base has a bias, a shift for each output; plain LoRA
    nothing."""
    plain = rig.loader.load(str(adapter(tmp_path / "plain", target_modules=ATTENTION))).layout
    dora = adapter(tmp_path / "dora", target_modules=ATTENTION, use_dora=True)
    layout = rig.loader.load(str(dora)).layout
    q, k, v, o = 64, 32, 32, 64
    assert layout.elems - plain.elems == 2 * (q + k + v) + o
    assert plain.affine == ()
    assert {name: len(slices) for name, slices in layout.affine[0].items()} == {"qkv": 3, "o": 1}


def test_plain_steps_have_no_affine_segments(rig: Rig, tmp_path: Path) -> None:
    seen: list[int] = []
    build = rig.engine._batches.build

    def recording(chunks):
        batch = build(chunks)
        seen.append(len(batch.affine))
        return batch

    rig.engine._batches.build = recording  # pyright: ignore[reportAttributeAccessIssue]
    rig.submit(0, [5, 6, 7], adapter(tmp_path / "plain"), max_tokens=3, ignore_eos=True)
    rig.run()
    assert set(seen) == {0}
    seen.clear()
    rig.submit(1, [5, 6, 7], adapter(tmp_path / "dora", use_dora=True), max_tokens=3)
    rig.run()
    assert set(seen) == {rig.engine._decoder.config.num_layers}
