"""From a PEFT adapter's two files to the list of low-rank updates they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    """y += scaling * (x @ A.T) @ B.T on one linear module.

    layer: index, or None outside the layers. module: e.g. "self_attn.q_proj" or "lm_head".
    a: [rank, in]. b: [out, rank].
    """

    layer: int | None
    module: str
    rank: int
    scaling: float
    a: TensorRef
    b: TensorRef


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What an adapter holds.

    digest: identity, sha256 hex. modules: by layer, then name; those outside the layers last.
    size_bytes, num_parameters: of the A and B tensors as stored, without frozen copies.
    dtype: "F32", "F16", "BF16", or "MIXED" when modules differ. layers_root: what comes before
    "layers." in the trained model's module names, "model." or "".
    frozen_copies: base weights that PEFT saved along; whoever has the base must compare them
    (`frozen_base_name` says with what) and refuse the adapter if they differ.
    """

    digest: str
    config: AdapterConfig
    modules: tuple[LoraModule, ...]
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
    for module in parsed.manifest.modules:
        for ref in (module.a, module.b):
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
    frozen: dict[str, TensorRef] = {}
    roots: set[str] = set()
    for name, ref in header.items():
        key = parse_key(name)
        if isinstance(key, LoraKey):
            if key.layer is not None:
                roots.add(key.layers_root)
            pair = pairs.setdefault((key.layer, key.module), {})
            if key.matrix in pair:
                raise BadWeightsError(f"tensor {excerpt(name)} appears twice, also without infix")
            pair[key.matrix] = ref
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
        _module(selector, root, layer, module, pairs[layer, module])
        for layer, module in sorted(pairs, key=lambda at: (at[0] is None, at[0] or 0, at[1]))
    )
    refs = [ref for module in modules for ref in (module.a, module.b)]
    dtypes = {ref.dtype for ref in refs}
    size_bytes = sum(ref.end - ref.start for ref in refs)
    digest = known_digest or adapter_digest(
        config,
        [(full_name(root, m.layer, m.module), m.rank, m.scaling, m.a, m.b) for m in modules],
        frozen,
        view,
    )
    manifest = AdapterManifest(
        digest=digest,
        config=config,
        modules=modules,
        size_bytes=size_bytes,
        max_rank=max(module.rank for module in modules),
        num_parameters=_num_elements(refs),
        dtype=dtypes.pop() if len(dtypes) == 1 else "MIXED",
        layers_root=root,
        frozen_copies=tuple(frozen[name] for name in sorted(frozen)),
    )
    return ParsedAdapter(manifest, view)


def _num_elements(refs: Iterable[TensorRef]) -> int:
    return sum((ref.end - ref.start) // ITEM_BYTES[ref.dtype] for ref in refs)


def _module(
    selector: ModuleSelector,
    root: str,
    layer: int | None,
    module: str,
    pair: dict[str, TensorRef],
) -> LoraModule:
    name = full_name(root, layer, module)
    for matrix, other in (("A", "B"), ("B", "A")):
        if matrix not in pair:
            raise BadWeightsError(
                f"{name} has lora_{other} but no lora_{matrix}: the file is incomplete; "
                "save the adapter again",
                metadata={"module": name},
            )
    a, b = pair["A"], pair["B"]
    for matrix, ref in pair.items():
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
    return LoraModule(layer, module, rank, selector.scaling(name), a, b)
