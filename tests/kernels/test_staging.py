"""Small values on their way to a device: with stand-ins for pinned memory and a GPU, and on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels.gpu.staging import staged, staged_together

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


PARTS = [np.array([3, 1, 2]), np.array([[4, 5], [6, 7]]), np.array([], dtype=np.int64)]


def test_several_go_together_each_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    empty = torch.empty

    def to(tensor: torch.Tensor, device: object, **options: object) -> torch.Tensor:
        assert options == {"non_blocking": True}
        sent.append(tensor)
        return tensor

    def pinning(*size: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", pinning)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for dtype in (np.int64, np.int32):
        parts = [part.astype(dtype) for part in PARTS]
        made = staged_together(parts, torch.device("cuda"))
        assert [each.tolist() for each in made] == [part.tolist() for part in parts]
        start = sent[-1].data_ptr()
        assert all((each.data_ptr() - start) % 16 == 0 for each in made if each.numel())
        assert all(each.dtype == sent[-1].dtype for each in made)
    assert len(sent) == 2


def test_on_cpu_several_are_what_they_were() -> None:
    made = staged_together(PARTS, torch.device("cpu"))
    assert [each.tolist() for each in made] == [part.tolist() for part in PARTS]
    assert [each.data_ptr() for each in made[:2]] == [part.ctypes.data for part in PARTS[:2]]
