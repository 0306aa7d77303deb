"""Adapters' products beside the base model's, on a second stream of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from kernels.lora.checks import check_launch
from kernels.lora.metadata import group_metadata
from kernels.lora.op import LoraSegments


class Side(Protocol):
    """As `kernels.gpu.side_stream.SideStream`."""

    def fork(self, work: Callable[[], object], afterwards: Callable[[], object]) -> None: ...

    def join(self) -> None: ...

    def finish(self) -> None: ...


class LoraBeside:
    """Those of one forward pass; `finish` ends it.

    As not every row and column of a projection has an adapter, what adapters add goes into a matrix
    of zeros. To make one takes as long as a product, and a small GEMM is over before both. So used
    ones are cleared behind the products that come next, when they have been read.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._used: torch.Tensor | None = None  # read by what is launched before the next call
        self._zeros: dict[torch.Size, list[torch.Tensor]] = {}

    def project(
        self,
        base: Callable[[], torch.Tensor],
        out_features: int,
        x: torch.Tensor,
        layer_pages: torch.Tensor,
        segments: LoraSegments,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `base` returns, which is y, and what `kernels.lora.op.lora_apply` would add to it: 0
        where no adapter is. `base` runs beside adapters' products.

        The second is to be read before the next call, by what is launched on the current stream;
        x must come of that, or of what was launched before. Arguments and Raises: as lora_apply.
        """
        from kernels.lora.triton_expand import expand  # Triton: a GPU's alone
        from kernels.lora.triton_shrink import new_hidden, shrink

        group = group_metadata(segments, x, x.shape[1])
        check_launch(x, layer_pages, group.metadata)
        hidden = new_hidden(x, group)
        size = torch.Size((len(x), out_features))
        zeros = self._zeros.setdefault(size, [])
        is_new = not zeros
        if is_new:
            zeros.append(x.new_empty(size))
        delta, read = zeros.pop(), self._used

        def adapters() -> None:
            if is_new:
                delta.zero_()
            shrink(x, layer_pages, group, out=hidden)
            expand(delta, hidden, layer_pages, group)

        def clear() -> None:
            if read is not None:
                read.zero_()

        self._side.fork(adapters, clear)
        self._used = delta
        if read is not None:
            self._zeros[read.shape].append(read)
        y = base()
        self._side.join()
        return y, delta

    def finish(self) -> None:
        """The current stream goes on when the other one has ended, and memory may be given back."""
        self._side.finish()
