"""From a PEFT adapter's two files to the list of low-rank updates they hold."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from mmap import mmap

from storage.adapter.activation import refuse_unactivated_modules
from storage.adapter.config import AdapterConfig, parse_config
from storage.adapter.contents import FileContents
from storage.adapter.digest import adapter_digest
from storage.adapter.experts import (
    is_of_mixture,
    is_old_form,
    is_whole,
    name_parameters,
    parameter_name,
    split_expert,
)
from storage.adapter.keys import CopyKey, head_root, parse_key
from storage.adapter.selection import ModuleSelector
from storage.adapter.vocabulary import EMBED_TOKENS, LM_HEAD, SavedModule, TrainedTokens
from storage.adapter.vocabulary_tensors import split_copies, trained_tokens
from storage.adapter.weights import ITEM_BYTES, TensorRef, check_finite, parse_header
from storage.errors import BadWeightsError, UnsupportedFeatureError, excerpt
from storage.limits import DEFAULT_LIMITS, AdapterLimits

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """y += scaling * ((x @ A.T) @ B.T + lora_bias) on one linear module.

    layer: index, or None outside the layers. module: e.g. "self_attn.q_proj" or "lm_head"; of
    "embed_tokens", x is the token as a unit vector, so that in is the vocabulary.
    a: [rank, in]. b: [out, rank]. num_experts: where the module is all experts of a layer in one
    (storage.adapter.experts), and then a: [num_experts * rank, in], expert by expert, and
    b: [out, rank * num_experts], rank by rank; else 0. lora_bias: [out], with config.lora_bias.
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
    num_experts: int = 0

    @property
    def name(self) -> str:
        """The module, a star in place of an expert's number."""
        return split_expert(self.module)[0]

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
    The head's is there, too, where PEFT saved it along with the head.
    saved_modules: an embedding or head that replaces the base's (config.modules_to_save).
    trained_tokens: rows that do (config.trained_tokens); a tied head has those of the embedding.
    size_bytes, num_parameters: of the trained tensors as stored, without frozen copies.
    dtype: "F32", "F16", "BF16", or "MIXED" when modules differ. layers_root: what comes before
    "layers." in the trained model's module names (storage.adapter.keys.LAYERS_ROOTS).
    frozen_copies: an embedding and head that PEFT saved along. Mostly they are the base's, and
    whoever has that must compare them (`frozen_base_name` says with what); PEFT loads them into
    the base model, or does not look at them (dataplane/lora/vocabulary_parts.py).
    vision: what only images go through, by name. Text does not depend on it; the digest does.
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
    saved_modules: tuple[SavedModule, ...]
    trained_tokens: tuple[TrainedTokens, ...]
    vision: Mapping[str, TensorRef]

    @property
    def is_old_form(self) -> bool:
        """Whether it has parts of mixtures as transformers 4 names them."""
        return is_old_form(self.config, (each.module for each in self.modules))

    @property
    def has_mixtures(self) -> bool:
        return any(is_of_mixture(each.module) for each in self.modules)

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
    if layer is not None:
        return f"{layers_root}layers.{layer}.{module}"
    root = head_root(layers_root) if module == LM_HEAD else layers_root
    return f"{root}{module}"


def frozen_base_name(ref: TensorRef) -> str:
    """The base weight that a frozen copy repeats: "lm_head.weight" or "embed_tokens.weight"."""
    key = parse_key(ref.name)
    assert isinstance(key, CopyKey)
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
    for ref in (*_trained(parsed.manifest), *parsed.manifest.frozen_copies):
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
    found = FileContents(header)
    root = found.layers_root()
    pairs = found.pairs
    if (None, EMBED_TOKENS) in pairs:
        _check_embedding(config)
    refuse_unactivated_modules(
        config, (module for _, module in pairs), (module for _, module in found.biases)
    )
    selector = ModuleSelector(config)
    name_parameters(config, selector, f"{root}layers.", pairs)
    modules = tuple(
        _module(config, selector, root, layer, module, pairs[layer, module])
        for layer, module in sorted(pairs, key=_position)
    )
    biases = tuple(
        _trained_bias(config, root, layer, module, found.biases[layer, module], pairs)
        for layer, module in sorted(found.biases, key=_position)
    )
    saved, frozen = split_copies(config, found.copies, found.wrapped, _outer(pairs))
    manifest = AdapterManifest(
        digest="",
        config=config,
        modules=modules,
        biases=biases,
        size_bytes=0,
        max_rank=max(module.rank for module in modules),
        num_parameters=0,
        dtype="",
        layers_root=root,
        frozen_copies=tuple(frozen[name] for name in sorted(frozen)),
        saved_modules=saved,
        trained_tokens=trained_tokens(config, found.tokens, _outer(pairs)),
        vision=found.vision,
    )
    refs = _trained(manifest)
    dtypes = {ref.dtype for ref in refs}
    manifest = replace(
        manifest,
        digest=known_digest or _digest(manifest, view),
        size_bytes=sum(ref.end - ref.start for ref in refs),
        num_parameters=_num_elements(refs),
        dtype=dtypes.pop() if len(dtypes) == 1 else "MIXED",
    )
    return ParsedAdapter(manifest, view)


def _outer(pairs: Iterable[tuple[int | None, str]]) -> frozenset[str]:
    return frozenset(module for layer, module in pairs if layer is None)


def _digest(manifest: AdapterManifest, view: memoryview) -> str:
    root = manifest.layers_root
    return adapter_digest(
        manifest.config,
        [(manifest.full_name(m), m.rank, m.scaling, _named(m)) for m in manifest.modules],
        {full_name(root, bias.layer, bias.module): bias.ref for bias in manifest.biases},
        {
            **{frozen_base_name(ref): ref for ref in manifest.frozen_copies},
            **{f"{each.module}.weight": each.ref for each in manifest.saved_modules},
            **{f"{each.module}.trained_tokens": each.ref for each in manifest.trained_tokens},
            **manifest.vision,
        },
        view,
    )


def _position(at: tuple[int | None, str]) -> tuple[bool, int, str]:
    return at[0] is None, at[0] or 0, at[1]


def _trained(manifest: AdapterManifest) -> list[TensorRef]:
    return [
        *(ref for module in manifest.modules for ref in module.refs),
        *(bias.ref for bias in manifest.biases),
        *(saved.ref for saved in manifest.saved_modules),
        *(tokens.ref for tokens in manifest.trained_tokens),
    ]


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
    pattern_name = parameter_name(config, name, module)
    rank = selector.rank(pattern_name)
    num_experts = a.shape[0] // rank if is_whole(module) else 0
    ranks = (num_experts or 1) * rank
    if a.shape[0] != ranks or b.shape[1] != ranks:
        raise BadWeightsError(
            f"{name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, but adapter_config.json"
            f" (r, rank_pattern) gives it rank {rank}{' for each expert' if num_experts else ''}",
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
        selector.scaling(pattern_name),
        a,
        b,
        parts.get("lora_bias"),
        parts.get("magnitude"),
        num_experts,
    )


def _check_embedding(config: AdapterConfig) -> None:
    for field, is_set in (("use_dora", config.use_dora), ("lora_bias", config.lora_bias)):
        if is_set:
            raise UnsupportedFeatureError(
                f"adapter_config.json: {field} cannot be served together with LoRA on"
                f" {EMBED_TOKENS}: train the adapter without one of them",
                metadata={"field": field, "module": EMBED_TOKENS},
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
    is_head = layer is None and module == LM_HEAD  # which PEFT saves whole, whatever config.bias is
    is_trained = config.bias == "all" or (config.bias != "none" and (layer, module) in selected)
    if not is_head and not is_trained:
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
