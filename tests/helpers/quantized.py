"""Quantised checkpoints of tiny models, written from what the formats are defined as.

Each writer is given a matrix and returns the tensors of its module and what they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from transformers import PreTrainedModel

from tests.helpers.models import make_model, save_model

Tensors = dict[str, torch.Tensor]
Writer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
SHAPE = {"intermediate_size": 128, "num_hidden_layers": 2}
"""Of tiny models whose rows are multiples of 64."""
PLAIN_FIELDS = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
"""Of a config.json that says nothing of quantisation."""
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
FP4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3)]


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """[n, m] -> [n, m * bits / 32] int32, the first value in the lowest bits."""
    shifts = bits * torch.arange(32 // bits)
    return (values.long().view(len(values), -1, 32 // bits) << shifts).sum(-1).to(torch.int32)


def spread(groups: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[out, num_groups] -> [out, in]"""
    return groups.float()[:, index]


def integers(
    weight: torch.Tensor, index: torch.Tensor, bits: int, *, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [out, in], zero points above 0 and float16 scales [out, num_groups]."""
    largest = 2**bits - 1
    scales, zeros = [], []
    for group in range(int(index.max()) + 1):
        part = weight[:, index == group]
        low, high = part.amin(1).clamp(max=-1e-3), part.amax(1).clamp(min=1e-3)
        if symmetric:
            low, high = -part.abs().amax(1), part.abs().amax(1)
        scale = ((high - low) / largest).half()
        zero = (-low / scale.float()).round().clamp(1, largest)
        scales.append(scale)
        zeros.append(torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero)
    scale, zero = torch.stack(scales, 1), torch.stack(zeros, 1)
    codes = (weight / spread(scale, index)).round() + spread(zero, index)
    return codes.clamp(0, largest), zero, scale


def value_of(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    return (codes - spread(zeros, index)) * spread(scales, index)


def in_order(weight: torch.Tensor, size: int) -> torch.Tensor:
    return torch.arange(weight.shape[1]) // size


def bitsandbytes(kind: str, *, nested: bool, block: int = 64) -> Writer:
    table = torch.tensor(NF4 if kind == "nf4" else FP4)

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks = weight.reshape(-1, block)
        absmax = blocks.abs().amax(1)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "bfloat16",
            "shape": list(weight.shape),
        }
        tensors = {"weight.absmax": absmax, "weight.quant_map": table}
        if nested:
            offset = float(absmax.mean())
            rest = absmax - offset
            of_256 = torch.stack([part.abs().max() for part in rest.split(256)])
            nested_table = torch.linspace(-1, 1, 256)
            largest = of_256.repeat_interleave(256)[: len(rest)]
            coded = (rest / largest)[:, None].sub(nested_table).abs().argmin(1)
            absmax = nested_table[coded] * largest + offset
            state |= {
                "nested_blocksize": 256,
                "nested_offset": offset,
                "nested_dtype": "float32",
            }
            tensors |= {
                "weight.absmax": coded.to(torch.uint8),
                "weight.nested_absmax": of_256,
                "weight.nested_quant_map": nested_table,
            }
        codes = (blocks / absmax[:, None])[:, :, None].sub(table).abs().argmin(2)
        flat = codes.flatten()
        tensors["weight"] = (flat[0::2] * 16 + flat[1::2]).to(torch.uint8)[:, None]
        data = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = data
        return tensors, (table[codes] * absmax[:, None]).view(weight.shape)

    return write


def llm_int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round()
    tensors = {"weight": codes.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0)}
    tensors["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return tensors, codes * (largest / 127)[:, None]


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    index = in_order(weight, 32)
    codes, zeros, scales = integers(weight, index, 4)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(values: torch.Tensor) -> torch.Tensor:
        by_word = values.T.reshape(values.shape[1], -1, 8)[:, :, order]
        return words(by_word.flatten(1), 4)

    tensors = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales.T.contiguous()}
    return tensors, value_of(codes, zeros, scales, index)


def gptq(bits: int, *, less_one: bool, act_order: bool, symmetric: bool, size: int = 32) -> Writer:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        index = in_order(weight, size)
        if act_order:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(5))]
        codes, zeros, scales = integers(weight, index, bits, symmetric=symmetric)
        tensors = {
            "qweight": words(codes, bits).T.contiguous(),
            "qzeros": words(zeros.T - int(less_one), bits),
            "scales": scales.T.contiguous(),
            "g_idx": index.to(torch.int32),
        }
        return tensors, value_of(codes, zeros, scales, index)

    return write


def float8(
    block: tuple[int, int] | None, name: str, shape: tuple[int, ...] = (), **more: torch.Tensor
) -> Writer:
    """shape: of the scale, where there are no blocks."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = block or weight.shape
        if len(shape) == 2:
            rows, columns = 1, weight.shape[1]
        of_blocks = [
            torch.stack([part.abs().max() / 448 for part in band.split(columns, 1)])
            for band in weight.split(rows)
        ]
        scales = torch.stack(of_blocks)
        whole = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        whole = whole[: weight.shape[0], : weight.shape[1]]
        codes = (weight / whole).to(torch.float8_e4m3fn)
        stored = scales if block or len(shape) == 2 else scales.view(shape)
        return {"weight": codes, name: stored, **more}, codes.float() * whole

    return write


def packed(
    bits: int, size: int | None, *, symmetric: bool = True, act_order: bool = False
) -> Writer:
    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        index = in_order(weight, size or weight.shape[1])
        if act_order:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(5))]
        codes, zeros, scales = integers(weight, index, bits, symmetric=symmetric)
        tensors = {
            "weight_packed": words(codes, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros.T, bits).T.contiguous()
        if act_order:
            tensors["weight_g_idx"] = index.to(torch.int32)
        return tensors, value_of(codes, zeros, scales, index)

    return write


def int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    index = in_order(weight, weight.shape[1])
    codes, zeros, scales = integers(weight, index, 8)
    tensors = {
        "weight": (codes - 128).to(torch.int8),
        "weight_scale": scales,
        "weight_zero_point": (zeros - 128).to(torch.int8),
    }
    return tensors, value_of(codes, zeros, scales, index)


def compressed(form: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


@dataclass(frozen=True)
class Form:
    config: dict[str, Any]
    write: Writer
    plain: tuple[str, ...] = field(default=("lm_head",))  # modules, by their ends


_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
_NF4 = {**_BNB, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
_GPTQ = {"quant_method": "gptq", "group_size": 32}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_STATIC = torch.tensor(0.5)
FORMS: dict[str, Form] = {
    "nf4": Form(_NF4, bitsandbytes("nf4", nested=True)),
    "nf4-some": Form(
        {**_NF4, "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp", "k_proj"]},
        bitsandbytes("nf4", nested=True),
        ("lm_head", *(f"layers.0.mlp.{each}_proj" for each in ("gate", "up", "down")), "k_proj"),
    ),
    "fp4": Form(_BNB, bitsandbytes("fp4", nested=False, block=32), ()),  # with the head
    "int8": Form({"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8),
    "awq": Form({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"}, awq),
    "gptq-4": Form(
        {**_GPTQ, "bits": 4, "desc_act": True, "sym": False},
        gptq(4, less_one=True, act_order=True, symmetric=False),
    ),
    "gptq-4-sym": Form(
        {**_GPTQ, "bits": 4, "group_size": -1},
        gptq(4, less_one=True, act_order=False, symmetric=True, size=1 << 20),
    ),
    "gptq-8": Form(
        {**_GPTQ, "bits": 8, "checkpoint_format": "gptq_v2", "dynamic": {"-:.*v_proj": {}}},
        gptq(8, less_one=False, act_order=False, symmetric=False),
        ("lm_head", "v_proj"),
    ),
    "fp8": Form({**_FP8, "weight_block_size": [16, 48]}, float8((16, 48), "weight_scale_inv")),
    "fp8-tensor": Form(
        {**_FP8, "activation_scheme": "static", "ignored_layers": ["lm_head", "re_proj.*"]},
        float8(None, "weight_scale", (1,), input_scale=_STATIC),
    ),
    "packed-4": Form(
        compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False),
        packed(4, 32, symmetric=False),
    ),
    "packed-4-order": Form(
        compressed("pack-quantized", num_bits=4, group_size=32, strategy="group", actorder="group"),
        packed(4, 32, act_order=True),
    ),
    "packed-8": Form(
        compressed("pack-quantized", num_bits=8, strategy="channel", actorder="weight"),
        packed(8, None),
    ),
    "packed-int8": Form(
        compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False), int8
    ),
    "packed-fp8": Form(
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        float8(None, "weight_scale", (-1, 1)),
    ),
    "packed-fp8-block": Form(
        compressed(
            "float-quantized",
            num_bits=8,
            type="float",
            strategy="block",
            block_structure=[48, 32],
        ),
        float8((48, 32), "weight_scale", input_scale=_STATIC),
    ),
}


def quantized_model(
    form: str, path: Path, architecture: str = "llama", **changes: object
) -> PreTrainedModel:
    """Saves a tiny model in that form at `path`. Returns the same model with weights as they are
    dequantised, float32."""
    model = make_model(architecture, **{**SHAPE, **changes})
    save_model(model, path)
    values = quantize(form, path)
    model.load_state_dict(values, strict=False)
    model.tie_weights()
    return model


def quantize(form: str, path: Path) -> Tensors:
    """Quantises a saved model in place. Returns all weights as they are dequantised."""
    file = path / "model.safetensors"
    # Not load_file: what some releases map from the file would be gone once it is written anew.
    stored, values = quantized(form, load(file.read_bytes()))
    save_file(stored, file)
    config = json.loads((path / "config.json").read_bytes())
    config["quantization_config"] = FORMS[form].config
    (path / "config.json").write_text(json.dumps(config))
    return values


def quantized(form: str, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Of a checkpoint: its tensors as they are stored, and what they stand for."""
    chosen = FORMS[form]
    stored: Tensors = {}
    values: Tensors = {}
    for name, weight in tensors.items():
        module = name.removesuffix(".weight")
        is_projection = module.endswith(("_proj", ".dense", ".fc1", ".fc2", "lm_head"))
        if not (is_projection and name.endswith(".weight")) or module.endswith(chosen.plain):
            stored[name] = values[name] = weight
            continue
        parts, value = chosen.write(weight)
        stored |= {f"{module}.{part}": tensor.clone() for part, tensor in parts.items()}
        values[name] = value
    return stored, values
