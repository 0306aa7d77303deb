from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.gpu.dispatch import interpreting


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["cpu"] if interpreting() else [pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> str:
    """Where Triton kernels run: the CPU when they are interpreted, else a GPU."""
    return request.param


@pytest.fixture
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What kernels' launchers allocate starts as NaN, so that an element left out shows."""
    new_empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *shape: int, **options: object) -> torch.Tensor:
        made = new_empty(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", poisoned)
        yield
