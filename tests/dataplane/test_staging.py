"""Small values on their way to a device: with stand-ins for pinned memory and a GPU, and on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dataplane.staging import staged

VALUES = pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3, 1, 2], torch.int64),
        (np.array([3, 1, 2]) % 2, torch.int64),
        ([], torch.int64),
        ([0.5, 2.0], torch.float32),
        ([0.1], torch.float64),
        ([[1, 2], [3, 4]], torch.int64),
    ],
)


@VALUES
def test_lists_and_arrays_go_to_a_gpu_through_pinned_memory(
    monkeypatch: pytest.MonkeyPatch, values: Any, dtype: torch.dtype
) -> None:
    pinned: list[torch.Tensor] = []
    sent: list[tuple[object, dict[str, object]]] = []
    empty = torch.empty

    def pinning(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = empty(*size, **options)
        if pin_memory:
            pinned.append(made)
        return made

    def to(tensor: torch.Tensor, device: object, **options: object) -> torch.Tensor:
        assert any(tensor is each for each in pinned)
        sent.append((device, options))
        return tensor

    monkeypatch.setattr(torch, "empty", pinning)
    monkeypatch.setattr(torch.Tensor, "to", to)
    device = torch.device("cuda")
    made = staged(values, dtype, device)
    assert sent == [(device, {"non_blocking": True})]
    assert made.dtype == dtype and made.tolist() == torch.tensor(values, dtype=dtype).tolist()


@VALUES
def test_on_cpu_they_are_copied(values: Any, dtype: torch.dtype) -> None:
    made = staged(values, dtype, torch.device("cpu"))
    assert made.dtype == dtype and made.tolist() == torch.tensor(values, dtype=dtype).tolist()
    if isinstance(values, np.ndarray):
        made += 1
        assert made.tolist() != values.tolist()


@pytest.mark.gpu
@VALUES
def test_the_host_does_not_wait(values: Any, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    staged(values, dtype, device)  # first uses of allocators
    torch.cuda.synchronize()
    reached = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    reached.record()
    made = staged(values, dtype, device)
    assert not reached.query()
    assert made.tolist() == torch.tensor(values, dtype=dtype).tolist()
