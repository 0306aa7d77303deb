"""Several kernels, one after the other, in one parallel region.

A region costs its start, and Python between two regions leaves all threads but one idle: too much
for kernels that take microseconds. Between the phases of a program threads only meet.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu import threads
from kernels.cpu.compile import compiled

_intrinsic: Any = intrinsic  # its stub keeps the typing context among the parameters

MAX_ARGUMENTS = 24
"""Of one phase."""
COUNTERS = 2
"""What workers call `threads.take` with."""
_PATIENCE = 20_000
"""So many turns a thread waits busily, about a millisecond, before it lets others have the core:
who gets it keeps it for milliseconds."""

_ARRIVED, _NUM_PHASES, _TABLE, _TEAM_SIZE, _NUM_ARGUMENTS = range(5)


class Program:
    """Phases in groups (one per layer), each a worker of `threads.worker` and its arguments.

    arguments: [groups, phases, MAX_ARGUMENTS] int64, whatever the workers take; the first COUNTERS
    of each count pieces of work and threads, and are set to 0 before it runs. workers: [groups,
    phases] addresses; 0 leaves a phase out.
    """

    def __init__(self, num_groups: int, num_phases: int) -> None:
        self.arguments = np.zeros((num_groups, num_phases, MAX_ARGUMENTS), dtype=np.int64)
        self._table = np.zeros((num_groups, num_phases, 2), dtype=np.int64)
        self.workers = self._table[:, :, 0]
        steps = np.arange(num_groups * num_phases, dtype=np.int64) * (8 * MAX_ARGUMENTS)
        self._table[:, :, 1] = (self.arguments.ctypes.data + steps).reshape(num_groups, num_phases)
        self._told = np.zeros(_NUM_ARGUMENTS, dtype=np.int64)

    def run(self, first: int, end: int) -> None:
        """Runs groups [first, end), and returns when all threads have."""
        num_phases = self._table.shape[1]
        self.arguments[first:end, :, :COUNTERS] = 0
        self._told[:] = (
            0,
            (end - first) * num_phases,
            self._table.ctypes.data + first * num_phases * 16,
            _team_size,
        )
        threads.run(_run_phases, self._told)


def _find_team_size() -> int:
    """The address of the function by which a thread asks how many run its region, or 0."""
    try:
        function = ctypes.CDLL(None).omp_get_num_threads
    except (OSError, AttributeError, TypeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_team_size = _find_team_size()


@_intrinsic
def _ask(typing_context: Any, function: Any) -> Any:
    """Calls a C function without arguments that returns an int."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.PointerType(ir.FunctionType(ir.IntType(32), []))
        answer = builder.call(builder.inttoptr(arguments[0], kind), [])
        return builder.sext(answer, ir.IntType(64))

    return types.int64(types.int64), generate


@_intrinsic
def _call(typing_context: Any, worker: Any, arguments: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = ir.PointerType(ir.IntType(64))
        kind = ir.PointerType(ir.FunctionType(ir.VoidType(), [pointer]))
        builder.call(builder.inttoptr(values[0], kind), [builder.inttoptr(values[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@_intrinsic
def _arrive(typing_context: Any, address: Any) -> Any:
    """Adds 1. What this thread wrote before is seen by whoever sees the sum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
        builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")
        return context.get_dummy_value()

    return types.void(types.intp), generate


@_intrinsic
def _arrived(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.intp), generate


@_intrinsic
def _pause(typing_context: Any) -> Any:
    """Tells the processor that this is a loop that waits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), generate


_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())


@compiled
def _meet(address: Any, expected: Any) -> None:  # pragma: no cover - compiled
    """Waits until `expected` have arrived."""
    _arrive(address)
    turns = 0
    while _arrived(address) < expected:
        turns += 1
        if turns > _PATIENCE:
            _sched_yield()
        else:
            _pause()


@threads.worker
def _run_phases(pointer: Any) -> None:  # pragma: no cover - compiled
    a = threads.told(pointer, _NUM_ARGUMENTS)
    num_threads = _ask(a[_TEAM_SIZE]) if a[_TEAM_SIZE] != 0 else 1
    table = threads.array(a[_TABLE], a, (a[_NUM_PHASES], 2))
    expected = 0
    for phase in range(a[_NUM_PHASES]):
        if table[phase, 0] != 0:
            _call(table[phase, 0], table[phase, 1])
            expected += num_threads
            _meet(a.ctypes.data + _ARRIVED * 8, expected)
