"""The copy of an adapter's rows, compiled for GPUs that this machine lacks."""

from __future__ import annotations

import pytest

from kernels.vocabulary.triton_rows import BLOCK, copy_rows_kernel
from tests.kernels.aot import FEW_BYTES, TARGETS, compile_kernel


@pytest.mark.parametrize(("is_sparse", "kind"), [(False, "fp32"), (True, "bf16")])
@pytest.mark.parametrize("target", TARGETS)
def test_copy_compiles(target: str, is_sparse: bool, kind: str) -> None:
    built = compile_kernel(
        copy_rows_kernel,
        target,
        {
            "out": f"*{kind}",
            "tokens": "*i64",
            "pool": f"*{kind}:16",
            "page_ids": "*i64",
            "wanted": "*i64",
            **dict.fromkeys(("num_wanted", "layer_stride", "out_stride"), "i32"),
            **dict.fromkeys(("rows_per_layer", "offset", "width"), "i32"),
        },
        {"PAGE_ELEMS": 4096, "BLOCK": BLOCK, "IS_SPARSE": is_sparse},
        {"num_warps": 4},
    )
    assert built.shared_bytes == 0
    assert built.spilled_bytes <= FEW_BYTES, built.registers
