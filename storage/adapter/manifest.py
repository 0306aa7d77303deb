"""From a PEFT adapter's two files to the list of low-rank updates they hold."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from mmap import mmap

from storage.adapter.config import AdapterConfig, parse_config
from storage.adapter.digest import adapter_digest
from storage.adapter.keys import FrozenKey, LoraKey, parse_key
from storage.adapter.selection import ModuleSelector
from storage.adapter.weights import ITEM_BYTES, TensorRef, check_finite, parse_header
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt
from storage.limits import DEFAULT_LIMITS, AdapterLimits

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """y += scaling * ((x @ A.T) @ B.T + lora_bias) on one linear module.

    layer: index, or None outside the layers. module: e.g. "self_attn.q_proj" or "lm_head".
    a: [rank, in]. b: [out, rank]. lora_bias: [out], with config.lora_bias.
    magnitude: [out], with config.use_dora: the rows of W + scaling * B @ A are rescaled to it.
    """

    layer: int | None
    module: str
    rank: int
    scaling: float
    a: TensorRef
    b: TensorRef
    lora_bias: TensorRef | None = None
    magnitude: TensorRef | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """All its tensors."""
        return tuple(
            ref for ref in (self.a, self.b, self.lora_bias, self.magnitude) if ref is not None
        )


@dataclass(frozen=True, slots=True)
class TrainedBias:
    """A base module's bias as it was after training: it stands in for the base's own. [out]"""

    layer: int | None
    module: str
    ref: TensorRef


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What an adapter holds.

    digest: identity, sha256 hex. modules: by layer, then name; those outside the layers last.
    biases: base biases that were trained along (config.bias); those of config.bias that the base
    has and the file lacks are for whoever has the base to miss, and then to refuse the adapter.
    size_bytes, num_parameters: of the trained tensors as stored, without frozen copies.
    dtype: "F32", "F16", "BF16", or "MIXED" when modules differ. layers_root: what comes before
    "layers." in the trained model's module names, "model." or "".
    frozen_copies: base weights that PEFT saved along; whoever has the base must compare them
    (`frozen_base_name` says with what) and refuse the adapter if they differ.
    """

    digest: str
    config: AdapterConfig
    modules: tuple[LoraModule, ...]
    biases: tuple[TrainedBias, ...]
    size_bytes: int
    max_rank: int
    num_parameters: int
    dtype: str
    layers_root: str
    frozen_copies: tuple[TensorRef, ...]

    def full_name(self, module: LoraModule) -> str:
        """The module's name in the model that was trained."""
        return full_name(self.layers_root, module.layer, module.module)


@dataclass(frozen=True, slots=True)
class ParsedAdapter:
    """A manifest and the file that its refs point into."""

    manifest: AdapterManifest
    weights: memoryview

    def view(self, ref: TensorRef) -> memoryview:
        """The tensor's bytes, row-major little-endian, no copy; not necessarily aligned."""
        return self.weights[ref.start : ref.end]


def full_name(layers_root: str, layer: int | None, module: str) -> str:
    return module if layer is None else f"{layers_root}layers.{layer}.{module}"


def frozen_base_name(ref: TensorRef) -> str:
    """The base weight that a frozen copy repeats: "lm_head.weight" or "embed_tokens.weight"."""
    key = parse_key(ref.name)
    assert isinstance(key, FrozenKey)
    return key.base_name


def parse_adapter(
    config_bytes: bytes,
    weights: bytes | memoryview | mmap,
    *,
    limits: AdapterLimits = DEFAULT_LIMITS,
    known_digest: str | None = None,
) -> ParsedAdapter:
    """Check both files completely, values included, and describe them.

    Reads every byte (twice: values, digest): run it off the event loop. The result keeps
    `weights` alive and does not copy it. known_digest: these very bytes were hashed already.

    Raises: AdapterFormatError (its subclasses name what is wrong).
    """
    assert known_digest is None or _DIGEST.fullmatch(known_digest)
    config = parse_config(config_bytes, limits=limits)
    view = memoryview(weights).toreadonly().cast("B")
    parsed = _parse_structure(config, view, parse_header(view, limits=limits), known_digest)
    for ref in _trained(parsed.manifest.modules, parsed.manifest.biases):
        check_finite(parsed.view(ref), ref)
    return parsed


def digest_of(
    config_bytes: bytes,
    weights: bytes | memoryview | mmap,
    *,
    limits: AdapterLimits = DEFAULT_LIMITS,
) -> str:
    """The digest that `parse_adapter` would give, without the check of values.

    Raises: AdapterFormatError.
    """
    config = parse_config(config_bytes, limits=limits)
    view = memoryview(weights).toreadonly().cast("B")
    header = parse_header(view, limits=limits)
    return _parse_structure(config, view, header, None).manifest.digest


def _parse_structure(
    config: AdapterConfig,
    view: memoryview,
    header: dict[str, TensorRef],
    known_digest: str | None,
) -> ParsedAdapter:
    pairs: dict[tuple[int | None, str], dict[str, TensorRef]] = {}
    trained_biases: dict[tuple[int | None, str], TensorRef] = {}
    frozen: dict[str, TensorRef] = {}
    roots: set[str] = set()
    for name, ref in header.items():
        key = parse_key(name)
        if isinstance(key, LoraKey):
            if key.layer is not None:
                roots.add(key.layers_root)
            at = (key.layer, key.module)
            parts = {} if key.part == "bias" else pairs.setdefault(at, {})
            if key.part in parts or (key.part == "bias" and at in trained_biases):
                raise BadWeightsError(f"tensor {excerpt(name)} appears twice, also without infix")
            if key.part == "bias":
                trained_biases[at] = ref
            else:
                parts[key.part] = ref
        elif key.base_name in frozen:
            raise BadWeightsError(f"tensor {excerpt(name)} repeats {key.base_name} of the base")
        else:
            frozen[key.base_name] = ref
    if not pairs:
        raise BadWeightsError("adapter_model.safetensors holds no lora_A and lora_B tensors")
    if len(roots) > 1:
        raise BadWeightsError("keys mix 'base_model.model.layers' and 'base_model.model.model.'")
    root = roots.pop() if roots else "model."
    selector = ModuleSelector(config)
    if selector.selects(f"{root}embed_tokens", linear=False):
        raise UnsupportedFeatureError(
            "target_modules selects embed_tokens: LoRA on embeddings is not served",
            metadata={"field": "target_modules"},
        )
    modules = tuple(
        _module(config, selector, root, layer, module, pairs[layer, module])
        for layer, module in sorted(pairs, key=_position)
    )
    biases = tuple(
        _trained_bias(config, root, layer, module, trained_biases[layer, module], pairs)
        for layer, module in sorted(trained_biases, key=_position)
    )
    refs = _trained(modules, biases)
    dtypes = {ref.dtype for ref in refs}
    size_bytes = sum(ref.end - ref.start for ref in refs)
    digest = known_digest or adapter_digest(
        config,
        [(full_name(root, m.layer, m.module), m.rank, m.scaling, _named(m)) for m in modules],
        {full_name(root, bias.layer, bias.module): bias.ref for bias in biases},
        frozen,
        view,
    )
    manifest = AdapterManifest(
        digest=digest,
        config=config,
        modules=modules,
        biases=biases,
        size_bytes=size_bytes,
        max_rank=max(module.rank for module in modules),
        num_parameters=_num_elements(refs),
        dtype=dtypes.pop() if len(dtypes) == 1 else "MIXED",
        layers_root=root,
        frozen_copies=tuple(frozen[name] for name in sorted(frozen)),
    )
    return ParsedAdapter(manifest, view)


def _position(at: tuple[int | None, str]) -> tuple[bool, int, str]:
    return at[0] is None, at[0] or 0, at[1]


def _trained(modules: Iterable[LoraModule], biases: Iterable[TrainedBias]) -> list[TensorRef]:
    return [ref for module in modules for ref in module.refs] + [bias.ref for bias in biases]


def _named(module: LoraModule) -> dict[str, TensorRef]:
    named = {"lora_A": module.a, "lora_B": module.b}
    if module.lora_bias:
        named["lora_B.bias"] = module.lora_bias
    if module.magnitude:
        named["lora_magnitude_vector"] = module.magnitude
    return named


def _num_elements(refs: Iterable[TensorRef]) -> int:
    return sum((ref.end - ref.start) // ITEM_BYTES[ref.dtype] for ref in refs)


def _module(
    config: AdapterConfig,
    selector: ModuleSelector,
    root: str,
    layer: int | None,
    module: str,
    parts: dict[str, TensorRef],
) -> LoraModule:
    name = full_name(root, layer, module)
    for matrix, other in (("A", "B"), ("B", "A")):
        if matrix not in parts:
            there = f"lora_{other}" if other in parts else min(parts)
            raise BadWeightsError(
                f"{name} has {there} but no lora_{matrix}: the file is incomplete; "
                "save the adapter again",
                metadata={"module": name},
            )
    a, b = parts["A"], parts["B"]
    for matrix, ref in (("A", a), ("B", b)):
        if len(ref.shape) != 2 or 0 in ref.shape:
            raise BadWeightsError(
                f"{name} lora_{matrix} has shape {list(ref.shape)}; it must be a matrix "
                "(a sharded checkpoint must be gathered before saving)",
                metadata={"module": name},
            )
    rank = selector.rank(name)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise BadWeightsError(
            f"{name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, but adapter_config.json"
            f" (r, rank_pattern) gives it rank {rank}",
            metadata={"module": name, "rank": str(rank)},
        )
    for part, what, field, wanted in (
        ("magnitude", "lora_magnitude_vector", "use_dora", config.use_dora),
        ("lora_bias", "lora_B.bias", "lora_bias", config.lora_bias),
    ):
        _check_vector(name, what, field, wanted, parts.get(part), b.shape[0])
    return LoraModule(
        layer,
        module,
        rank,
        selector.scaling(name),
        a,
        b,
        parts.get("lora_bias"),
        parts.get("magnitude"),
    )


def _check_vector(
    name: str, what: str, field: str, wanted: bool, ref: TensorRef | None, out_features: int
) -> None:
    if (ref is not None) != wanted:
        there, says = ("no", "true") if wanted else ("a", "false")
        raise BadWeightsError(
            f"{name} has {there} {what}, but adapter_config.json says {field} is {says}: config "
            "and weights are not of one adapter; save it again",
            metadata={"module": name, "field": field},
        )
    if ref is not None and ref.shape != (out_features,):
        raise BadWeightsError(
            f"{name} {what} has shape {list(ref.shape)}; lora_B says [{out_features}]",
            metadata={"module": name},
        )


def _trained_bias(
    config: AdapterConfig,
    root: str,
    layer: int | None,
    module: str,
    ref: TensorRef,
    selected: Container[tuple[int | None, str]],
) -> TrainedBias:
    name = full_name(root, layer, module)
    if config.bias == "none" or (config.bias == "lora_only" and (layer, module) not in selected):
        raise BadWeightsError(
            f"the weights have a bias of {excerpt(name)}, but adapter_config.json says bias is "
            f"{config.bias!r}: config and weights are not of one adapter; save it again",
            metadata={"module": name[:200], "field": "bias"},
        )
    if len(ref.shape) != 1:
        raise BadWeightsError(
            f"the bias of {excerpt(name)} has shape {list(ref.shape)}; it must be a vector",
            metadata={"module": name[:200]},
        )
    return TrainedBias(layer, module, ref)
