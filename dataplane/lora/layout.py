"""Where an adapter's matrices go in its pages, and packing them there.

In every layer's flat array: first that layer's share of the modules outside the layers (lm_head,
split by columns evenly over the layers), then for each projection group its A rows and its B rows,
those of a mixture of experts (mixtures.py), and then the vectors of DoRA and biases, where the
adapter has any; behind the longest of the layers, in all of them at the same place, its rows of the
embedding and the head (vocabulary.py).
See kernels/lora/plan.py for the order within a group, kernels/lora/extras.py for the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from dataplane.errors import AdapterRefusedError, PoolTooSmallError
from dataplane.lora.affine import AffinePlan, AffineVectors
from dataplane.lora.mixtures import MixturePlan
from dataplane.lora.pinned_arena import HostBlock
from dataplane.lora.tensors import stored_tensor
from dataplane.lora.vocabulary import VocabularyLayout, pack_vocabulary, plan_vocabulary
from dataplane.lora.vocabulary_parts import VocabularyParts, vocabulary_parts
from dataplane.models.config import ModelConfig
from dataplane.models.shapes import GROUPS, LM_HEAD, group_names, layer_groups
from dataplane.models.weights import ModelWeights
from kernels.lora.bucket import AdapterRows
from kernels.lora.extras import AffineSlice
from kernels.lora.plan import PLAN_ROW, ExpandSlice, GroupPlan, plan_row
from storage import pace
from storage.adapter.experts import is_of_mixture
from storage.adapter.manifest import AdapterManifest, LoraModule, ParsedAdapter
from storage.adapter.vocabulary import EMBED_TOKENS

_MAX_LAYER_ELEMS = 2**31 - 1  # kernels' offsets are 32-bit (kernels/lora/checks.py)
_VECTOR = 8  # 16 bytes of 2-byte elements: what a GPU's thread reads at once


CutModule = Callable[[LoraModule, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of a module's A and B, as stored, the part that one of several ranks has."""


class Columns(NamedTuple):
    """Input and output columns of lm_head whose weights lie in one layer's slice."""

    in_start: int
    in_end: int
    out_start: int
    out_end: int


@dataclass(frozen=True)
class AdapterLayout:
    """Offsets in elements of one adapter's flat array per layer."""

    layers: tuple[Mapping[str, GroupPlan], ...]  # projection group -> plan, per layer
    head: tuple[GroupPlan, ...]  # per layer, over that layer's Columns; empty without lm_head
    elems: int  # per layer
    # Projection group -> what it rescales or shifts, per layer; empty for plain LoRA.
    affine: tuple[Mapping[str, tuple[AffineSlice, ...]], ...] = ()
    # Per layer, over that layer's Columns; empty unless the head rescales or shifts.
    head_affine: tuple[tuple[AffineSlice, ...], ...] = ()
    vocabulary: VocabularyLayout | None = None  # None: embedding and head but for LoRA on it
    group_names: tuple[str, ...] = GROUPS  # that a layer of this model may have

    @cached_property
    def plan_rows(self) -> np.ndarray[Any, Any]:
        """[num_layers, num_groups, PLAN_FIELDS] int64, groups in the order of the forward pass."""
        return np.array(
            [[plan_row(plans.get(name)) for name in self.group_names] for plans in self.layers],
            dtype=np.int64,
        )

    @cached_property
    def device_rows(self) -> AdapterRows:
        """`plan_rows` as launches on a GPU read them."""
        return AdapterRows.of(self.plan_rows, PLAN_ROW)

    @cached_property
    def device_head_rows(self) -> AdapterRows:
        """Of `head`: one group in each layer."""
        rows = np.array([[plan_row(plan)] for plan in self.head], dtype=np.int64)
        return AdapterRows.of(rows, PLAN_ROW)

    def num_pages(self, page_elems: int) -> int:
        return -(-self.elems // page_elems)


@dataclass(frozen=True)
class HostAdapter:
    """An adapter in pool layout, in host memory: loading it is copying."""

    digest: str
    layout: AdapterLayout
    pages: torch.Tensor  # [num_layers, num_pages, page_elems] pool dtype, host; rank 0's
    weights_bytes: int = 0  # of the file that it was made of; 0: not known
    block_bytes: int = 0  # of the memory that `pages` lie in, where they do not fill it
    index_bytes: int = 0  # of the layout's lists of tokens
    num_ranks: int = 1
    shared_offset: int = -1  # of `pages` in memory that ranks share; behind them lie the others'
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA

    @cached_property
    def nbytes(self) -> int:
        """Of all ranks' pages."""
        return self.pages.numel() * self.pages.element_size() * self.num_ranks

    @property
    def host_bytes(self) -> int:
        """That it takes of host memory."""
        return max(self.nbytes, self.block_bytes) + self.index_bytes


def head_columns(config: ModelConfig) -> tuple[Columns, ...]:
    """lm_head's columns by layer; the last layers' may be empty. All shares but the last one that
    is not have whole vectors, so that none begins in the middle of one."""

    def split(total: int, layer: int) -> tuple[int, int]:
        width = _whole(-(-total // config.num_layers))
        return min(layer * width, total), min((layer + 1) * width, total)

    return tuple(
        Columns(*split(config.hidden_size, layer), *split(config.vocab_size, layer))
        for layer in range(config.num_layers)
    )


def plan_layout(
    config: ModelConfig, manifest: AdapterManifest, parts: VocabularyParts | None = None
) -> AdapterLayout:
    """The layout of a validated adapter (storage.adapter.match.check_base has passed).

    parts: of embedding and head, beside LoRA on the head.
    """
    modules = {(module.layer, module.module): module for module in manifest.modules}
    head = modules.get((None, LM_HEAD))
    head_plans, head_elems = _plan_head(config, head.rank) if head else ((), 0)
    affine = AffinePlan(config, manifest)
    mixtures = MixturePlan(config, manifest)
    widths = [columns.out_end - columns.out_start for columns in head_columns(config)]
    head_affine, head_elems = affine.head(widths, head_elems)
    head_elems = _whole(head_elems)
    layers: list[Mapping[str, GroupPlan]] = []
    affine_layers: list[Mapping[str, tuple[AffineSlice, ...]]] = []
    elems = head_elems
    for layer in range(config.num_layers):
        plans: dict[str, GroupPlan] = {}
        offset = head_elems
        for name, group in layer_groups(config, layer).items():
            present = [
                (projection, modules[layer, projection.module].rank)
                for projection in group.projections
                if (layer, projection.module) in modules
            ]
            if not present:
                continue
            a_offset = offset
            total_rank = sum(rank for _, rank in present)
            offset += total_rank * group.in_features
            slices: list[ExpandSlice] = []
            rank_start = 0
            for projection, rank in present:
                slices.append(
                    ExpandSlice(
                        rank_start, rank, offset, projection.out_start, projection.out_features
                    )
                )
                rank_start += rank
                offset += rank * projection.out_features
            plans[name] = GroupPlan(total_rank, group.in_features, a_offset, tuple(slices))
        of_mixture, offset = mixtures.layer(layer, offset)
        plans |= of_mixture
        slices_by_group, offset = affine.layer(layer, offset)
        layers.append(plans)
        affine_layers.append(slices_by_group)
        elems = max(elems, offset)
    vocabulary = None
    if parts is not None and not parts.are_base:
        vocabulary, elems = plan_vocabulary(config, parts, _whole(elems))
    return AdapterLayout(
        tuple(layers),
        head_plans,
        elems,
        tuple(affine_layers) if any(affine_layers) else (),
        head_affine,
        vocabulary,
        group_names(config),
    )


def _whole(elems: int) -> int:
    return -(-elems // _VECTOR) * _VECTOR


def _plan_head(config: ModelConfig, rank: int) -> tuple[tuple[GroupPlan, ...], int]:
    plans: list[GroupPlan] = []
    elems = 0
    for columns in head_columns(config):
        in_features = columns.in_end - columns.in_start
        out_features = columns.out_end - columns.out_start
        b_offset = rank * in_features
        plans.append(
            GroupPlan(rank, in_features, 0, (ExpandSlice(0, rank, b_offset, 0, out_features),))
        )
        elems = max(elems, b_offset + rank * out_features)
    # What comes after an odd head begins at a whole vector.
    return tuple(plans), _whole(elems)


def pack(
    config: ModelConfig,
    base: ModelWeights,
    adapter: ParsedAdapter,
    *,
    page_elems: int,
    dtype: torch.dtype,
    pool_pages: int | None = None,
    block: Callable[[tuple[int, ...], torch.dtype], HostBlock] | None = None,
    cut: CutModule | None = None,
) -> HostAdapter:
    """Builds the host copy in pool layout. Scaling, and DoRA's, is folded into B in float32.
    pool_pages: that the pool has. block: gives memory for it that the device reads by itself; None:
    any. cut: what of each module is packed, where `config` is a shard's; None: all.

    Raises: AdapterRefusedError when an embedding or head that the adapter carries is not served
    (vocabulary_parts.py), when its biases are not the base model's, or when a weight overflows the
    pool's dtype; PoolTooSmallError when the pool could not hold it beside a sequence.
    """
    manifest = adapter.manifest
    parts = vocabulary_parts(base, adapter)
    layout = plan_layout(config, manifest, parts)
    num_pages = layout.num_pages(page_elems)
    # Before memory is taken for it: an embedding is as large as the base model's.
    if num_pages * page_elems > _MAX_LAYER_ELEMS:
        raise AdapterRefusedError(
            "ADAPTER_TOO_LARGE",
            f"the adapter has {layout.elems} elements in each of {config.num_layers} layers; the"
            f" limit is {_MAX_LAYER_ELEMS}: "
            + (
                "train experts at a lower rank"
                if manifest.has_mixtures
                else "train embedding and head as LoRA"
            ),
            {"digest": manifest.digest, "elements": str(layout.elems)},
        )
    if pool_pages is not None and num_pages >= pool_pages:
        raise too_large(manifest.digest, num_pages, pool_pages)
    shape = config.num_layers, num_pages, page_elems
    pages, block_bytes = block(shape, dtype) if block else (torch.empty(shape, dtype=dtype), 0)
    pages.zero_()
    flat = pages.view(config.num_layers, -1)
    columns = head_columns(config)
    groups = [
        {
            projection.module: (name, index, group)
            for name, group in layer_groups(config, layer).items()
            for index, projection in enumerate(group.projections)
        }
        for layer in range(config.num_layers)
    ]
    vectors = AffineVectors(config, base, adapter)
    mixtures = MixturePlan(config, manifest)

    def write(layer: int, offset: int, matrix: torch.Tensor) -> None:
        _write(flat[layer], offset, matrix)

    for module in manifest.modules:
        if module.module == EMBED_TOKENS:
            continue  # with the vocabulary
        pace.rest()
        a, b = stored_tensor(adapter, module.a), stored_tensor(adapter, module.b)
        if cut is not None:
            a, b = cut(module, a, b)
        b = b.float() * module.scaling
        # Rounded before it is transposed: torch has a fast path for that within one dtype.
        b = vectors.take(module, a, b).to(dtype).t()
        if module.layer is None:
            for layer, (part, plan) in enumerate(zip(columns, layout.head, strict=True)):
                _write(flat[layer], plan.a_offset, a[:, part.in_start : part.in_end])
                part_b = b[:, part.out_start : part.out_end]
                _write(flat[layer], plan.slices[0].b_offset, part_b)
            continue
        if is_of_mixture(module.module):
            mixtures.pack(module, layout.layers[module.layer], a, b, write)
            continue
        name, index, group = groups[module.layer][module.module]
        plan = layout.layers[module.layer][name]
        out_start = group.projections[index].out_start
        part = next(each for each in plan.slices if each.out_start == out_start)
        _write(flat[module.layer], plan.a_offset + part.rank_start * plan.in_features, a)
        _write(flat[module.layer], part.b_offset, b)
    _write_vectors(config, flat, layout, vectors)
    if layout.vocabulary is not None:
        pack_vocabulary(flat, layout.vocabulary, parts, adapter)
    # Many times faster than to ask each element.
    if not all(_is_finite(layer) for layer in flat):
        elsewhere = dtype == torch.float16  # the others reach equally far
        way_out = "serve with --dtype bfloat16 or float32" if elsewhere else "train it anew"
        raise AdapterRefusedError(
            "WEIGHTS_OVERFLOW",
            f"a weight of the adapter, times its scaling, is too large for {dtype}; {way_out}",
            {"digest": manifest.digest, "dtype": str(dtype)},
        )
    index_bytes = layout.vocabulary.nbytes if layout.vocabulary else 0
    return HostAdapter(
        manifest.digest,
        layout,
        pages,
        len(adapter.weights),
        block_bytes,
        index_bytes,
        invocation_tokens=manifest.config.invocation_tokens,
    )


def _is_finite(values: torch.Tensor) -> bool:
    """NaN counts as both extremes."""
    pace.rest()
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(values))


def _write_vectors(
    config: ModelConfig, flat: torch.Tensor, layout: AdapterLayout, vectors: AffineVectors
) -> None:
    for layer, slices_by_group in enumerate(layout.affine):
        for name, slices in slices_by_group.items():
            projections = layer_groups(config, layer)[name].projections
            for part in slices:
                module = next(each.module for each in projections if each[1] == part.out_start)
                at = (layer, module)
                if part.scale_offset >= 0:
                    _write(flat[layer], part.scale_offset, vectors.scale(at))
                if part.shift_offset >= 0:
                    _write(flat[layer], part.shift_offset, vectors.shift(at))
    if not layout.head_affine:
        return
    (first,) = layout.head_affine[0]
    at = (None, LM_HEAD)
    for offset, values in (
        (first.scale_offset, vectors.scale),
        (first.shift_offset, vectors.shift),
    ):
        if offset < 0:
            continue
        vector = values(at)
        for layer, part in enumerate(head_columns(config)):
            _write(flat[layer], offset, vector[part.out_start : part.out_end])


def _write(flat: torch.Tensor, offset: int, matrix: torch.Tensor) -> None:
    flat[offset : offset + matrix.numel()].view(matrix.shape).copy_(matrix)


def too_large(digest: str, num_pages: int, pool_pages: int) -> PoolTooSmallError:
    return PoolTooSmallError(
        "POOL_TOO_SMALL",
        f"the adapter takes {num_pages} of the pool's {pool_pages} pages, which leaves none"
        " for a sequence: start the data plane with a larger --pool-bytes",
        {"digest": digest, "pages": str(num_pages), "num_pages": str(pool_pages)},
    )
