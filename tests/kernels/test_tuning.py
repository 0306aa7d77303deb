"""The tuning tables say something for every device and case that a launcher may ask for."""

from __future__ import annotations

import json

import pytest

from kernels.gpu.tuning import TABLES, launch_options, tuned

CASES = {
    "attention": {
        kernel: [f"{dim}x{size}" for dim in (64, 128, 256) for size in (2, 4)]
        for kernel in ("decode", "prefill")
    },
    "fused": {
        "rms_norm": ["1024", "2048", "4096", "8192", "16384", "32768"],
        "gated_activation": ["any"],
    },
    "kv": {"rope_write_kv": ["64", "128", "256"]},
    "quantized": {
        "linear": [f"{tile}x{bits}" for tile in (16, 32, 64) for bits in (4, 8)],
        "add_splits": ["any"],
        "dequantize": ["4", "8"],
        "regime": ["any"],
    },
}


@pytest.mark.parametrize("family", CASES)
def test_every_device_has_every_case(family: str) -> None:
    table = json.loads((TABLES / f"{family}.json").read_text())
    assert {"default", "interpreter", "sm_80", "sm_90", "gfx942"} <= table.keys()
    for kernels in table.values():
        assert {name: set(cases) for name, cases in kernels.items()} == {
            name: set(cases) for name, cases in CASES[family].items()
        }


def test_a_device_without_a_table_takes_the_default() -> None:
    default = tuned("attention", "default", "decode", "128x2")
    assert tuned("attention", "sm_121", "decode", "128x2") == default
    assert tuned("attention", "sm_90", "decode", "128x2") != default
    assert launch_options(default).keys() == {"num_warps", "num_stages"}
