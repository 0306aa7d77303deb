"""Every form of checkpoint that is read, and what is damaged or does not fit its description."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dataplane.errors import CheckpointError, UnsupportedModelError
from dataplane.models.checkpoint import Checkpoint
from dataplane.models.config_json import load_config, parse_config
from dataplane.models.matrices import Matrices
from dataplane.models.quantization import names
from dataplane.models.quantization.parse import parse_quantization
from dataplane.models.weights import ModelWeights, fingerprint, load_weights
from dataplane.parallel.shard import Shard
from kernels.quantized.matrix import QuantizedMatrix
from tests.helpers.gpu_stand_in import CUDA, StandInGpu
from tests.helpers.models import make_model, save_model
from tests.helpers.quantized import (
    FORMS,
    PLAIN_FIELDS,
    SHAPE,
    quantize,
    quantized,
    quantized_model,
)

CPU = torch.device("cpu")
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
MODULE = "model.layers.0.mlp.down_proj"


def load(model_dir: Path) -> ModelWeights:
    return load_weights(model_dir, load_config(model_dir), torch.float32, CPU)


def read(
    model_dir: Path,
    config: dict[str, Any],
    shape: torch.Size,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """MODULE alone."""
    quantization = parse_quantization({"quantization_config": config})
    with ExitStack() as stack:
        matrices = Matrices(Checkpoint(model_dir, stack), quantization, [MODULE], dtype, CPU)
        found = matrices.read([(MODULE, shape[0])], shape[1])
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_matrices_that_other_libraries_wrote(path: Path, tmp_path: Path) -> None:
    """Each file has a matrix of one library, and what that library dequantises it to: see
    golden/README.md."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["quantization_config"])
        expected = file.get_tensor("expected")
    (tmp_path / "model.safetensors").write_bytes(path.read_bytes())
    found = read(tmp_path, config, expected.shape, expected.dtype)
    if path.stem == "bitsandbytes-int8":  # it multiplies with 1 / 127, in another order
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_that_codes_stand_for(form: str, tmp_path: Path) -> None:
    save_model(make_model("llama", **SHAPE), tmp_path)
    values = quantize(form, tmp_path)
    weights = load(tmp_path)
    groups = {
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "o": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }
    for index, layer in enumerate(weights.layers):
        for group, modules in groups.items():
            parts = [values[f"model.layers.{index}.{module}.weight"] for module in modules]
            torch.testing.assert_close(layer.group(group)[0], torch.cat(parts), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights.lm_head, values["lm_head.weight"], rtol=1e-6, atol=0)


def test_codes_stay_on_a_gpu_where_those_of_a_product_are_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else they are dequantised: k is plain in one model, has groups of its own in the other."""
    some, order = tmp_path / "some", tmp_path / "order"
    quantized_model("nf4-some", some)
    quantized_model("packed-4-order", order)
    tensors = load_file(order / "model.safetensors")
    for index in range(2):
        tensors[f"model.layers.{index}.self_attn.k_proj.weight_g_idx"] = torch.arange(64).int() % 2
    save_file(tensors, order / "model.safetensors")
    for model_dir, kept in ((some, ["o", "gate_up", "down"]), (order, ["o", "gate_up", "down"])):
        on_cpu = load(model_dir).layers[1]
        with StandInGpu():
            config = load_config(model_dir)
            weights = load_weights(model_dir, config, torch.float32, CUDA)
            layer = weights.layers[1]
            for name in ("qkv", "o", "gate_up", "down"):
                assert isinstance(getattr(layer, name), QuantizedMatrix) == (name in kept)
                assert torch.equal(layer.group(name)[0], on_cpu.group(name)[0])
                rows = slice(3, 40)
                assert torch.equal(layer.rows(name, rows), on_cpu.group(name)[0][rows])
        assert ("self_attn.q_proj" in caplog.text) == (model_dir == order)
    assert caplog.text.count("dequantised") == 1


def test_fused_projections_and_biases(tmp_path: Path) -> None:
    for architecture, form in (("phi3", "packed-4"), ("qwen2", "gptq-4")):
        model = quantized_model(form, tmp_path / architecture, architecture)
        weights = load(tmp_path / architecture)
        state = model.state_dict()
        found, bias = weights.layers[1].group("qkv")
        if architecture == "phi3":
            expected = state["model.layers.1.self_attn.qkv_proj.weight"]
        else:
            prefix = "model.layers.1.self_attn"
            parts = [state[f"{prefix}.{each}_proj.weight"] for each in "qkv"]
            expected = torch.cat(parts)
            assert bias is not None
            biases = [state[f"{prefix}.{each}_proj.bias"] for each in "qkv"]
            assert torch.equal(bias, torch.cat(biases))
            assert weights.tied
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_data_planes_of_other_quantisations_have_other_fingerprints(tmp_path: Path) -> None:
    prints: dict[str, str] = {}
    for form in ("", "nf4", "fp4", "gptq-4", "gptq-4-sym", "nf4-some"):
        save_model(make_model("llama", **SHAPE), tmp_path / form / "model")
        if form:
            quantize(form, tmp_path / form / "model")
        prints[form] = fingerprint(load_config(tmp_path / form / "model"))
    assert len(set(prints.values())) == len(prints)
    again = save_model(make_model("llama", **SHAPE), tmp_path / "again")
    quantize("nf4", again)
    assert fingerprint(load_config(again)) == prints["nf4"]


def test_a_plain_models_fingerprint_is_that_of_earlier_versions() -> None:
    """Streams move between data planes of two versions while one replaces the other."""
    expected = "49106b949a153602b6abddd9f9aef0d0681893939ee1eb0ef27443a1721bd851"
    assert fingerprint(parse_config(PLAIN_FIELDS)) == expected


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    quantized_model("awq", tmp_path)
    config = load_config(tmp_path)
    Shard(config, 0, 1)
    with pytest.raises(UnsupportedModelError, match="--tensor-parallel 1") as caught:
        Shard(config, 0, 2)
    assert caught.value.reason == "TENSOR_PARALLEL_QUANTIZED"
    assert caught.value.metadata["field"] == "quantization_config.quant_method"
    assert caught.value.metadata["value"] == "awq"


class Damage:
    """One tensor of a module is changed; loading it must be refused."""

    def __init__(self, form: str, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.config = FORMS[form].config
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
        self.tensors, _ = quantized(form, {f"{MODULE}.weight": weight})
        self.read()

    def read(self) -> None:
        save_file(self.tensors, self.path / "model.safetensors")
        read(self.path, self.config, torch.Size((64, 128)))

    def refused(self, name: str, value: torch.Tensor | None) -> CheckpointError:
        full = f"{MODULE}.{name}"
        sound = dict(self.tensors)
        self.tensors.pop(full, None)
        if value is not None:
            self.tensors[full] = value
        with pytest.raises(CheckpointError) as caught:
            self.read()
        self.tensors = sound
        assert caught.value.metadata["tensor"].startswith(MODULE), caught.value
        return caught.value

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"{MODULE}.{name}"].clone()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "nf4-some"])
def test_missing_misshaped_and_strange_tensors_are_named(form: str, tmp_path: Path) -> None:
    damage = Damage(form, tmp_path)
    for full in list(damage.tensors):
        name = full.removeprefix(f"{MODULE}.")
        value = damage[name]
        if name == "input_scale":  # nothing depends on it
            damage.tensors.pop(full)
            damage.read()
            continue
        if name not in ("weight_format", "g_idx") or damage.config.get("desc_act"):
            assert damage.refused(name, None).reason == "TENSOR_MISSING"
        longer = torch.cat([value.flatten()] * 3)
        refusal = damage.refused(name, longer)
        is_json = "quant_state" in name
        assert refusal.reason == ("QUANTIZATION_INVALID" if is_json else "TENSOR_SHAPE")
        if name != "weight_shape":  # may be stored so
            as_integers = value.double().to(torch.int64)
            assert damage.refused(name, as_integers).reason == "CHECKPOINT_DTYPE"
        if value.dtype in (torch.float32, torch.float16) and "quant_map" not in name:
            for bad in (float("nan"), float("inf")):
                spoiled = value.clone()
                spoiled.view(-1)[-1] = bad
                assert damage.refused(name, spoiled).reason == "QUANTIZATION_INVALID"
    strange = damage.refused("weight_scale_2", torch.ones(1))
    assert strange.reason == "QUANTIZATION_MISMATCH" and "weight_scale_2" in strange.message


def test_values_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    def refused(form: str, name: str, value: torch.Tensor) -> str:
        found = damages.setdefault(form, Damage(form, tmp_path / form)).refused(name, value)
        assert found.reason == "QUANTIZATION_INVALID", found
        assert name in found.message
        return found.message

    damages: dict[str, Damage] = {}
    index = Damage("gptq-4", tmp_path / "a")["g_idx"]
    for bad in (4, -1, 1 << 30):
        spoiled = index.clone()
        spoiled[7] = bad
        assert "groups" in refused("gptq-4", "g_idx", spoiled)
        assert "groups" in refused("packed-4-order", "weight_g_idx", spoiled)
    uneven = Damage("packed-4-order", tmp_path / "b")["weight_g_idx"]
    uneven[uneven == 1] = 0
    assert "32 inputs" in refused("packed-4-order", "weight_g_idx", uneven)
    # The inputs' order of a checkpoint that says it has none.
    shuffled = Damage("gptq-8", tmp_path / "c")["g_idx"].flip(0)
    assert "desc_act" in refused("gptq-8", "g_idx", shuffled)
    zeros = torch.full_like(Damage("gptq-4", tmp_path / "d")["qzeros"], -1)
    assert "gptq_v2" in refused("gptq-4", "qzeros", zeros)
    shape = torch.tensor([128, 64])
    assert "weight_shape" in refused("packed-4", "weight_shape", shape)
    codes = Damage("fp8", tmp_path / "e")["weight"]
    codes.view(torch.uint8)[3, 3] = 0xFF
    refused("fp8", "weight", codes)
    refused("packed-fp8", "weight", codes)
    refused("int8", "weight_format", torch.tensor(1, dtype=torch.uint8))
    refused("nf4", "weight.quant_map", torch.linspace(-1, 1, 16))
    state = "weight.quant_state.bitsandbytes__nf4"
    sound = json.loads(bytes(Damage("nf4", tmp_path / "f")[state].tolist()))
    for change in (
        *({"blocksize": each} for each in (0, -64, True, 48, 1 << 40, None)),
        *({"nested_offset": each} for each in (None, "1", 1e60, float("nan"), float("inf"))),
        *({"nested_blocksize": each} for each in (0, 1 << 40)),
        *({"shape": each} for each in ([128, 64], [64], None, "64")),
        {"quant_type": "fp4"},
    ):
        text = json.dumps({**sound, **change}).encode()
        refused("nf4", state, torch.tensor(list(text), dtype=torch.uint8))
    for text in (b"[]", b"{", b"[" * 4000, b" " * 5000):
        refused("nf4", state, torch.tensor(list(text), dtype=torch.uint8))
    nested = Damage("nf4", tmp_path / "g")
    nested.tensors[f"{MODULE}.weight.nested_quant_map"] *= 1e30
    assert "infinite" in nested.refused("weight.nested_absmax", torch.full((1,), 1e30)).message
    zero = Damage("packed-8", tmp_path / "h")
    zero.tensors[f"{MODULE}.weight_zero_point"] = torch.zeros(64, 1, dtype=torch.int8)
    zero.read()  # as earlier versions stored it
    assert "symmetric" in zero.refused("weight_zero_point", torch.ones(64, 1).char()).message


@pytest.mark.timeout(60)
def test_sizes_of_strangers_take_no_memory(tmp_path: Path) -> None:
    """Blocks larger than the matrix are the matrix."""
    shape = torch.Size((64, 128))
    huge = 1 << 40
    one = Damage("fp8-tensor", tmp_path / "a")
    one.tensors[f"{MODULE}.weight_scale"] = one["weight_scale"].view(1, 1)
    save_file(one.tensors, one.path / "model.safetensors")
    config = {**one.config, "weight_block_size": [huge, huge]}
    expected = one["weight"].float() * one["weight_scale"]
    assert torch.equal(read(one.path, config, shape), expected)
    nested = Damage("nf4", tmp_path / "b")
    name = "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(nested[name].tolist()))
    text = json.dumps({**state, "nested_blocksize": (1 << 31) - 1}).encode()
    nested.tensors[f"{MODULE}.{name}"] = torch.tensor(list(text), dtype=torch.uint8)
    nested.read()


def test_description_and_tensors_must_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized_model("awq", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    plain = {k: v for k, v in tensors.items() if not k.startswith(f"{MODULE}.")}
    plain[f"{MODULE}.weight"] = torch.zeros(64, 128)
    save_file(plain, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="add it to the modules that are not") as caught:
        load(tmp_path)
    assert caught.value.reason == "QUANTIZATION_MISMATCH"

    def skip(*listed: str) -> None:
        config = json.loads((tmp_path / "config.json").read_bytes())
        config["quantization_config"]["modules_to_not_convert"] = listed
        (tmp_path / "config.json").write_text(json.dumps(config))

    for listed in (("down_proj",), ("model.layers.0.mlp",), (r"model\.layers\.\d+\.mlp.*",)):
        skip(*listed)
        with pytest.raises(CheckpointError) as caught:  # others are quantised after all
            load(tmp_path)
        assert caught.value.reason == "QUANTIZATION_MISMATCH"
    for listed in ((MODULE,), ("layers.0.mlp.down",), (r"model\.layers\.0\.mlp\.d.*",)):
        skip(*listed)
        assert not load(tmp_path).layers[0].down.any()
    # Expressions of strangers take bounded time.
    monkeypatch.setattr(names, "_MAX_STEPS", 1000)
    skip(r"(.*.*)*x" * 20)
    with pytest.raises(UnsupportedModelError, match=r"modules_to_not_convert.* takes too long"):
        load(tmp_path)


def test_quantised_tensors_without_a_description_are_refused(tmp_path: Path) -> None:
    for form in ("fp8", "packed-int8", "nf4", "awq"):
        quantized_model(form, tmp_path / form)
        config = json.loads((tmp_path / form / "config.json").read_bytes())
        del config["quantization_config"]
        (tmp_path / form / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / form)
        expected = {"awq": "TENSOR_MISSING", "nf4": "TENSOR_SHAPE"}.get(form, "CHECKPOINT_DTYPE")
        assert caught.value.reason == expected


def test_a_tied_head_that_is_quantised_is_another_one(tmp_path: Path) -> None:
    quantized_model("nf4", tmp_path, "qwen2")
    tensors = load_file(tmp_path / "model.safetensors")
    head, _ = FORMS["nf4"].write(tensors["model.embed_tokens.weight"])
    tensors |= {f"lm_head.{name}": value for name, value in head.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert caught.value.reason == "HEAD_NOT_TIED"
