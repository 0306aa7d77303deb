"""DoRA and biases of adapters: where their vectors lie, and what is in them.

See kernels/lora/extras.py for the formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from dataplane.errors import AdapterRefusedError
from dataplane.lora.tensors import stored_tensor
from dataplane.models.config import ModelConfig
from dataplane.models.shapes import LM_HEAD, Group, Projection, layer_groups
from dataplane.models.weights import ModelWeights
from kernels.lora.extras import AffineSlice
from storage.adapter.manifest import AdapterManifest, LoraModule, ParsedAdapter

_ROWS_AT_ONCE = 1024  # of a base weight in float32, to bound memory

At = tuple[int | None, str]
"""Layer (None outside the layers) and module."""


class AffinePlan:
    """Which modules of an adapter are rescaled or shifted, and where the vectors for it go."""

    def __init__(self, config: ModelConfig, manifest: AdapterManifest) -> None:
        self._groups = [layer_groups(config, layer) for layer in range(config.num_layers)]
        self._scaled: set[At] = {(m.layer, m.module) for m in manifest.modules if m.magnitude}
        self._shifted: set[At] = {(m.layer, m.module) for m in manifest.modules if m.lora_bias}
        theirs = {(m.layer, m.module) for m in manifest.modules}
        self._shifted |= {
            (bias.layer, bias.module)
            for bias in manifest.biases
            if bias.layer is not None or (None, LM_HEAD) in theirs
        }
        # DoRA leaves the base's bias as it is, so what scaling does to it is taken back.
        self._shifted |= {
            (layer, projection.module)
            for layer, groups in enumerate(self._groups)
            for group, projection in _projections(groups)
            if group.has_bias
            if (layer, projection.module) in self._scaled
        }

    def layer(self, layer: int, offset: int) -> tuple[Mapping[str, tuple[AffineSlice, ...]], int]:
        """The layer's slices by projection group, from `offset` on, and the offset after them."""
        groups: dict[str, tuple[AffineSlice, ...]] = {}
        for name, group in self._groups[layer].items():
            slices: list[AffineSlice] = []
            for module, out_start, out_features in group.projections:
                scale = shift = -1
                if (layer, module) in self._scaled:
                    scale, offset = offset, offset + out_features
                if (layer, module) in self._shifted:
                    shift, offset = offset, offset + out_features
                if scale >= 0 or shift >= 0:
                    slices.append(AffineSlice(scale, shift, out_start, out_features))
            if slices:
                groups[name] = tuple(slices)
        return groups, offset

    def head(
        self, widths: Sequence[int], offset: int
    ) -> tuple[tuple[tuple[AffineSlice, ...], ...], int]:
        """The head's slices by layer, from `offset` on in each, and the offset after them.

        widths: the head's output columns in each layer's slice.
        """
        scaled, shifted = (None, LM_HEAD) in self._scaled, (None, LM_HEAD) in self._shifted
        if not scaled and not shifted:
            return (), offset
        widest = max(widths)
        scale = offset if scaled else -1
        shift = offset + widest * scaled if shifted else -1
        slices = tuple((AffineSlice(scale, shift, 0, width),) for width in widths)
        return slices, offset + widest * (scaled + shifted)


class AffineVectors:
    """The values: g of the DoRA modules, and shifts of all that are shifted. All float32."""

    def __init__(self, config: ModelConfig, base: ModelWeights, adapter: ParsedAdapter) -> None:
        """Raises: AdapterRefusedError when the adapter's biases are not the base model's."""
        self._base = base
        self._adapter = adapter
        self._vocab_size = config.vocab_size
        self._place = {
            (layer, projection.module): (name, projection)
            for layer in range(config.num_layers)
            for name, group in layer_groups(config, layer).items()
            for projection in group.projections
        }
        self._factors: dict[At, torch.Tensor] = {}
        self._added: dict[At, torch.Tensor] = {}  # scaling * lora_B's bias
        manifest = adapter.manifest
        self._trained = {(bias.layer, bias.module): bias.ref for bias in manifest.biases}
        _check_biases(config, manifest, self._trained.keys())
        self._check_head_bias()

    def _check_head_bias(self) -> None:
        """Without LoRA on the head nothing shifts what it gives."""
        manifest, mine = self._adapter.manifest, self._base.head_bias
        ref = self._trained.get((None, LM_HEAD))
        has_lora = any(m.layer is None and m.module == LM_HEAD for m in manifest.modules)
        if ref is None or mine is None or has_lora:
            return
        if not torch.equal(stored_tensor(self._adapter, ref).to(mine.dtype), mine.cpu()):
            raise AdapterRefusedError(
                "BASE_TENSOR_CHANGED",
                f"the adapter carries its own {ref.name}, which differs from the base model's: that"
                f" is served with LoRA on {LM_HEAD} only",
                {"tensor": ref.name, "digest": manifest.digest},
            )

    def take(self, module: LoraModule, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Takes note of a module's vectors. Returns what its B is to be stored as.

        a: [rank, in] as stored; b: [out, rank] with scaling, float32.
        Raises: AdapterRefusedError when DoRA cannot scale a row.
        """
        at = (module.layer, module.module)
        if module.lora_bias:
            added = stored_tensor(self._adapter, module.lora_bias).float()
            self._added[at] = added * module.scaling
        if not module.magnitude:
            return b
        magnitude = stored_tensor(self._adapter, module.magnitude).float()
        factor = _dora_factor(
            self._base_weight(at), a.float(), b, magnitude, self._adapter.manifest.full_name(module)
        )
        self._factors[at] = factor
        return b * factor.unsqueeze(1)

    def scale(self, at: At) -> torch.Tensor:
        """[out]: g - 1."""
        return self._factors[at] - 1.0

    def shift(self, at: At) -> torch.Tensor:
        """[out]: b1 - g * b0, and the bias that lora_B adds."""
        bias = self._base_bias(at)
        total = torch.zeros(self._num_outputs(at))
        mine = torch.zeros_like(total) if bias is None else bias.float().cpu()
        trained = self._trained.get(at)
        total += mine if trained is None else stored_tensor(self._adapter, trained).float()
        # The head's own bias comes last, after what scales.
        is_scaled = at in self._factors and at[0] is not None
        total -= mine * self._factors[at] if is_scaled else mine
        if at in self._added:
            total += self._added[at]
        return total

    def _base_weight(self, at: At) -> torch.Tensor:
        layer, module = at
        if layer is None:
            return self._base.lm_head
        name, (_, start, count) = self._place[layer, module]
        return self._base.layers[layer].rows(name, slice(start, start + count))

    def _base_bias(self, at: At) -> torch.Tensor | None:
        layer, module = at
        if layer is None:
            return self._base.head_bias
        name, (_, start, count) = self._place[layer, module]
        bias = self._base.layers[layer].bias(name)
        return None if bias is None else bias[start : start + count]

    def _num_outputs(self, at: At) -> int:
        layer, module = at
        return self._vocab_size if layer is None else self._place[layer, module][1].out_features


def _projections(groups: Mapping[str, Group]) -> Iterator[tuple[Group, Projection]]:
    for group in groups.values():
        for projection in group.projections:
            yield group, projection


def _check_biases(config: ModelConfig, manifest: AdapterManifest, present: Iterable[At]) -> None:
    """The biases in the file must be all of those that were trained, and the base's own."""
    selection = manifest.config.bias
    there = set(present)
    if not there and selection == "none":
        return
    theirs = {(m.layer, m.module) for m in manifest.modules}
    mine: set[At] = {
        (layer, projection.module)
        for layer in range(config.num_layers)
        for group, projection in _projections(layer_groups(config, layer))
        if group.has_bias
    }
    if config.traits.head_bias:
        mine.add((None, LM_HEAD))
    if unknown := sorted(_shown(at) for at in there - mine):
        raise AdapterRefusedError(
            "BIAS_UNKNOWN",
            f"the adapter carries a bias of {unknown[0]}, which has none in this base model: it"
            " was trained on another one",
            {"digest": manifest.digest, "count": str(len(unknown))},
        )
    trained = {"none": set[At](), "all": mine}.get(selection, mine & theirs)
    if missing := sorted(_shown(at) for at in trained - there):
        raise AdapterRefusedError(
            "BIAS_MISSING",
            f"the adapter was trained with bias={selection!r}, but its file lacks the bias of"
            f" {missing[0]} and {len(missing) - 1} more; save it again",
            {"digest": manifest.digest, "count": str(len(missing))},
        )


def _shown(at: At) -> str:
    layer, module = at
    return module if layer is None else f"{module} of layer {layer}"


def _dora_factor(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, magnitude: torch.Tensor, name: str
) -> torch.Tensor:
    """g = magnitude / ‖weight + b a‖ by rows, [out] float32. weight: any dtype and device."""
    a, b = a.to(weight.device), b.to(weight.device)
    norms = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        norms[rows] = torch.addmm(weight[rows].float(), b[rows], a).norm(dim=1).cpu()
    if not bool((norms > 0).all()):
        raise AdapterRefusedError(
            "DORA_DIRECTION_ZERO",
            f"{name}: a row of the base weight plus its update is all zero, which DoRA cannot"
            " scale to its magnitude; train the adapter without use_dora",
            {"module": name},
        )
    return magnitude / norms
