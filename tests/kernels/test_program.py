"""Phases run in order, each over all of its pieces, on however many threads there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kernels.cpu import threads
from kernels.cpu.program import Program

_NEXT, _THREAD, _ADDEND, _SIZE, _SOURCE, _TARGET, _SEEN, _NUM_ARGUMENTS = range(8)
SIZE = 300


@threads.worker
def _reverse_and_add(pointer: Any) -> None:  # pragma: no cover - compiled
    """target[k] = source[size - 1 - k] + addend: reads what other threads wrote before."""
    a = threads.told(pointer, _NUM_ARGUMENTS)
    size = a[_SIZE]
    source, target = (
        threads.array(a[_SOURCE], a, (size,)),
        threads.array(a[_TARGET], a, (size,)),
    )
    seen = threads.array(a[_SEEN], a, (64,))
    seen[threads.take(a, _THREAD)] = 1
    while True:
        k = threads.take(a, _NEXT)
        if k >= size:
            return
        target[k] = source[size - 1 - k] + a[_ADDEND]


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_phase_sees_all_of_the_one_before(num_threads: int) -> None:
    groups, phases = 3, 7
    program = Program(groups, phases)
    buffers = np.zeros((2, SIZE), dtype=np.int64)
    seen = np.zeros(64, dtype=np.int64)
    worker = _reverse_and_add().address
    step = 0
    for group in range(groups):
        for phase in range(phases):
            if phase == 2:  # left out
                continue
            program.workers[group, phase] = worker
            told = (
                *(0, 0, group * phases + phase, SIZE),
                *(buffers[step % 2].ctypes.data, buffers[1 - step % 2].ctypes.data),
                seen.ctypes.data,
            )
            program.arguments[group, phase, : len(told)] = told
            step += 1
    added = sum(g * phases + p for g in range(groups) for p in range(phases) if p != 2)
    assert step % 2 == 0  # the result is in the first buffer, in the order it came
    for _ in range(100):
        buffers[0] = np.arange(SIZE)
        program.run(0, groups)
        assert (buffers[0] == np.arange(SIZE) + added).all()
    assert seen.sum() == num_threads


def test_runs_only_the_groups_that_are_asked_for(num_threads: int) -> None:
    program = Program(3, 1)
    source, targets = np.zeros(SIZE, dtype=np.int64), np.zeros((3, SIZE), dtype=np.int64)
    seen = np.zeros(64, dtype=np.int64)
    program.workers[:] = _reverse_and_add().address
    for group in range(3):
        addresses = (source.ctypes.data, targets[group].ctypes.data, seen.ctypes.data)
        told = (0, 0, group + 1, SIZE, *addresses)
        program.arguments[group, 0, : len(told)] = told
    program.run(1, 2)
    assert (targets == np.array([[0], [2], [0]])).all()
