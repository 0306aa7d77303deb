"""Shares of a span and a layer's kernels, of launches that are written down here."""

from __future__ import annotations

from benchmarks.gpu.timeline import Kernel, Shares, one_layer, shares


def _is_lora(name: str) -> bool:
    return name.startswith("lora")


def test_what_runs_beside_others_is_theirs_and_gaps_are_idle() -> None:
    kernels = [
        Kernel("gemm", 7, 0.0, 10.0),
        Kernel("lora shrink", 9, 1.0, 4.0),  # hidden
        Kernel("lora expand", 9, 8.0, 13.0),  # 3 of it alone
        Kernel("lora other", 11, 11.0, 12.0),  # no further time
        Kernel("norm", 7, 15.0, 16.0),  # after 2 of nothing
    ]
    assert shares(kernels, _is_lora) == Shares(others=11.0, marked=3.0, idle=2.0)
    assert shares(reversed(kernels), _is_lora) == shares(kernels, _is_lora)


def test_kernels_that_touch_leave_no_gap() -> None:
    kernels = [
        Kernel("gemm", 7, 0.0, 5.0),
        Kernel("lora", 7, 5.0, 6.0),
        Kernel("norm", 7, 6.0, 8.0),
    ]
    assert shares(kernels, _is_lora) == Shares(others=7.0, marked=1.0, idle=0.0)
    assert shares([], _is_lora) == Shares(0.0, 0.0, 0.0)


def test_one_layer_is_what_starts_between_two_anchors_in_the_middle() -> None:
    kernels = [
        Kernel(name, 7, 10.0 * layer + at, 10.0 * layer + at + 2.0)
        for layer in range(4)
        for name, at in (("attention", 3.0), (f"gemm {layer}", 6.0))
    ]
    assert one_layer(kernels, "attention") == [
        {"name": "attention", "stream": 7, "start_us": 0.0, "us": 2.0},
        {"name": "gemm 1", "stream": 7, "start_us": 3.0, "us": 2.0},
    ]
    assert one_layer(kernels[:2], "attention") == []
