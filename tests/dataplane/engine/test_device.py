"""The thread that is the CPU's device."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch

from dataplane.engine import device


@dataclass
class Number:
    value: int

    def to_host(self) -> Number:
        return self


def test_the_device_computes_with_as_many_threads_as_its_maker() -> None:
    before = torch.get_num_threads()
    try:
        for wanted in (3, 1, 2):
            torch.set_num_threads(wanted)
            cpu = device.CpuDevice()
            torch.set_num_threads(before)
            result, _ = cpu.launch(lambda: Number(torch.get_num_threads())).wait()
            assert result.value == wanted
    finally:
        torch.set_num_threads(before)


def test_work_runs_in_order_and_may_use_what_was_launched_before() -> None:
    cpu, go = device.CpuDevice(), threading.Event()

    def first() -> Number:
        assert go.wait(20.0)
        return Number(20)

    one = cpu.launch(first)
    two = cpu.launch(lambda: Number(one.result.value + 1))
    assert not one.is_done() and not two.is_done()
    go.set()
    assert two.wait()[0].value == 21 and one.is_done()


def test_what_work_raises_is_raised_where_it_is_waited_for_and_by_what_needs_it() -> None:
    cpu = device.CpuDevice()

    def broken() -> Number:
        raise RuntimeError("no power")

    one = cpu.launch(broken)
    two = cpu.launch(lambda: one.result)
    three = cpu.launch(lambda: Number(3))
    for each in (one, two):
        with pytest.raises(RuntimeError, match="no power"):
            each.wait()
    assert three.wait()[0].value == 3
