"""Defaults of the pool and of host memory under a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.models import Shape, write_model
from dataplane.engine.memory_sizes import memory_sizes
from dataplane.engine_options import EngineOptions
from dataplane.models.config_json import load_config
from tests.helpers.up import ROOT

GIB, MIB = 1 << 30, 1 << 20
MODEL = load_config(Path(ROOT / "examples" / "demo" / "model"))
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def sizes(limit: int, device: torch.device = CPU, **options: int) -> tuple[int, int]:
    asked = EngineOptions(model_dir="", model_name="m", **options)  # type: ignore[arg-type]
    return memory_sizes(asked, MODEL, torch.float32, device, limit)


def test_a_roomy_machine_gives_a_gibibyte_each() -> None:
    assert sizes(64 * GIB) == (GIB, GIB)
    assert sizes(64 * GIB, GPU) == (0, GIB)


def test_a_small_container_is_not_outgrown() -> None:
    pool, host = sizes(2 * GIB)
    assert pool == host
    assert 400 * MIB < pool <= 512 * MIB  # a GiB is for the processes
    assert sizes(int(1.5 * GIB), GPU) == (0, 512 * MIB)
    assert sizes(2 * GIB, tensor_parallel=2)[0] <= 256 * MIB
    assert sizes(600 * MIB) == (64 * MIB, 64 * MIB)


def test_weights_take_their_part_first() -> None:
    asked = EngineOptions(model_dir="", model_name="m")
    wide, narrow = (
        memory_sizes(asked, MODEL, dtype, CPU, 2 * GIB) for dtype in (torch.float32, torch.bfloat16)
    )
    weights = sum(f.stat().st_size for f in (ROOT / "examples/demo/model").glob("*.safetensors"))
    itemsize = {"bfloat16": 2, "float16": 2, "float32": 4}[MODEL.dtype]
    saved = 2 * (narrow.pool_bytes - wide.pool_bytes)
    assert saved == pytest.approx(weights // itemsize * 2, rel=0.05)


def test_experts_weigh_as_well(tmp_path: Path) -> None:
    shape = Shape(256, 1024, 4, 8, 8, 512, num_experts=8, top_k=2)
    write_model(tmp_path / "model", shape)
    weights = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    config, asked = load_config(tmp_path / "model"), EngineOptions(model_dir="", model_name="m")
    itemsize = {"bfloat16": 2, "float16": 2, "float32": 4}[config.dtype]
    sizes = memory_sizes(asked, config, torch.bfloat16, CPU, 2 * GIB)
    assert GIB - 2 * sizes.pool_bytes == pytest.approx(weights // itemsize * 2, rel=0.05)


def test_what_is_asked_for_is_given_and_the_other_gets_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert sizes(3 * GIB, pool_bytes=GIB, host_cache_bytes=0) == (GIB, 0)
    pool, host = sizes(3 * GIB, pool_bytes=3 * GIB // 2)
    assert pool == 3 * GIB // 2 and 400 * MIB < host <= 512 * MIB
    assert not caplog.records
    assert sizes(2 * GIB, pool_bytes=GIB, host_cache_bytes=GIB) == (GIB, GIB)
    assert "1024 MiB of pages and 1024 MiB of adapters" in caplog.text
