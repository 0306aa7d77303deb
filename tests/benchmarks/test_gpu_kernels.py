"""The kernels' roofline benchmark, dry: what it counts, and that it runs without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_kernels
from benchmarks.kernel_cases import SHAPES, decode_cases, fused_cases, kv_cases, prefill_cases
from benchmarks.kernel_expert_cases import expert_cases
from benchmarks.kernel_lora_cases import lora_cases
from benchmarks.kernel_quantized_cases import quantized_cases

CPU = torch.device("cpu")


def test_dry_run_writes_every_op(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "kernels.json"
    arguments = ["--device", "cpu", "--shapes", "tiny", "--rounds", "1", "--out", str(out)]
    assert gpu_kernels.main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["schema"] == gpu_kernels.SCHEMA and report["device"] == "cpu"
    assert report["copy_bytes_per_s"] > 0 and report["matmul_flops_per_s"] > 0
    assert {case["op"] for case in report["cases"]} == {
        "attention_decode",
        "attention_prefill",
        "rope_write_kv",
        "rms_norm",
        "add_rms_norm",
        "gated_activation",
        "lora_apply",
        "linear_quantized",
        "mix_experts",
        "mix_experts_lora",
        "sample",
    }
    for case in report["cases"]:
        least = max(
            case["bytes"] / report["copy_bytes_per_s"],
            case["flops"] / report["matmul_flops_per_s"],
        )
        assert case["fraction"] == pytest.approx(least / case["seconds"])
    assert "% of roofline" in capsys.readouterr().out


def test_counts_are_those_of_the_tensors() -> None:
    shapes = SHAPES["tiny"]
    decode = list(decode_cases(shapes, CPU, torch.float32))
    # 3 sequences of 40 keys and values of 2 heads of 16, read once; queries in, outputs out.
    assert decode[1].bytes == 4 * 3 * (2 * 40 * 2 * 16 + 2 * 4 * 16)
    assert decode[1].flops == 3 * 4 * 40 * 4 * 16
    prefill = list(prefill_cases(shapes, CPU, torch.bfloat16))
    # 2 chunks of 5 tokens of 12, that see 8, 9, 10, 11 and 12 keys.
    assert prefill[1].flops == 2 * 4 * (8 + 9 + 10 + 11 + 12) * 4 * 16
    assert prefill[1].bytes == 2 * 2 * (2 * 12 * 2 * 16 + 2 * 5 * 4 * 16)
    assert next(kv_cases(shapes, CPU, torch.float32)).bytes == 4 * 2 * (8 * 16 + 16)
    norm, add_norm, activation = list(fused_cases(shapes, CPU, torch.float32))[:3]
    assert (norm.bytes, add_norm.bytes, activation.bytes) == (4 * 128, 4 * 256, 4 * 3 * 96)
    experts = {case.shape: case for case in expert_cases(shapes, CPU, torch.bfloat16)}
    case = experts["tiny, 5 tokens, 4 experts"]
    # Router, experts of three matrices and the shared one's gate; tokens, what is shared, and out.
    assert case.bytes == 2 * (4 * 16 + 4 * 3 * 24 * 16 + 16 + 3 * 5 * 16)
    assert case.flops == 2 * 5 * 16 * (4 + 2 * 3 * 24 + 1)
    assert experts["tiny, 5 tokens, 2 experts"].bytes == case.bytes - 2 * 2 * 3 * 24 * 16
    case = experts["tiny, 5 tokens, 4 adapters of rank 16"]
    # Two experts of a token, and of the first adapter's two tokens four.
    pairs, each = 5 * 2, 16 * (2 * 16 + 3 * 24)
    base = experts["tiny, 5 tokens, 4 experts"]
    assert case.bytes == base.bytes + 2 * pairs * each
    assert case.flops == base.flops + 5 * 2 * 2 * each
    quantized = {case.shape: case for case in quantized_cases(shapes, CPU, torch.bfloat16)}
    case = quantized["tiny down, nf4 of 64, 5 tokens"]
    # [64, 96] in half bytes and a scale for each of 3 groups; inputs and outputs.
    assert case.bytes == 64 * 48 + 2 * 3 * 64 + 2 * 5 * (96 + 64)
    assert case.flops == 2 * 5 * 96 * 64
    lora = {case.shape: case for case in lora_cases(shapes, CPU, torch.float32)}
    case = lora["tiny gate_up, 3 adapters of rank 2-8"]
    weights = sum(2 * rank * 64 + 2 * rank * 96 for rank in (2, 8, 2))
    assert (case.flops, case.bytes) == (2 * weights, 4 * (weights + 3 * (64 + 2 * 192)))


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu_kernels.main([])
    assert "--device cpu" in capsys.readouterr().err
