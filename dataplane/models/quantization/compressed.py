"""What compressed-tensors' quantization_config says (llm-compressor writes it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from dataplane.models.fields import unsupported
from dataplane.models.quantization.compressed_schemes import Float8, Int8, Packed
from dataplane.models.quantization.description import Choice, Quantization, Scheme
from dataplane.models.quantization.fields import Fields
from dataplane.models.quantization.names import Matcher, check_expressions

METHOD = "compressed-tensors"
_GROUPS = "quantization_config.config_groups"
_IGNORE = "quantization_config.ignore"
_KNOWN = (
    *("quant_method", "format", "config_groups", "ignore", "quantization_status", "version"),
    *("global_compression_ratio", "sparsity_config"),
)
_GROUP_FIELDS = ("targets", "weights", "input_activations", "format")
_WEIGHT_FIELDS = (
    *("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "actorder"),
    *("observer", "observer_kwargs", "scale_dtype", "zp_dtype"),
)
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_TYPES = {"pack-quantized": "int", "int-quantized": "int", "float-quantized": "float"}
_MIXED = "mixed-precision"
_ANY_LINEAR = "Linear"
_BY_INDEX = ("group", "dynamic")
"""Values of `actorder` with which each input's group is stored."""


def parse(fields: Fields) -> Quantization:
    """Raises: UnsupportedModelError."""
    fields.only(_KNOWN)
    if fields.value("sparsity_config"):
        sparsity = fields.object("sparsity_config")
        sparsity.choice("format", ("dense",))
    form = fields.choice("format", (*_FORMATS, _MIXED), _MIXED)
    ignored = fields.names("ignore") or ()
    check_expressions(_IGNORE, ignored, prefixed=True)
    groups = tuple(_group(each, form) for each in fields.objects("config_groups").values())
    return Quantization(METHOD, Groups(groups, ignored))


def _group(fields: Fields, form: str) -> Group:
    fields.only(_GROUP_FIELDS)
    if form == _MIXED or "format" in fields:
        form = fields.choice("format", _FORMATS)
    targets = fields.names("targets") or ()
    for each in targets:
        if not each.startswith("re:") and "." not in each and each not in (_ANY_LINEAR, "lm_head"):
            raise fields.refusal("targets", f"{_ANY_LINEAR}, names of projections, or re: and one")
    check_expressions(_GROUPS, targets, prefixed=True)
    return Group(targets, _scheme(fields.object("weights"), form))


def _scheme(fields: Fields, form: str) -> Scheme:
    fields.only(_WEIGHT_FIELDS)
    kind = fields.choice("type", ("int", "float"), "int")
    packed = form == "pack-quantized"
    bits = fields.number("num_bits", (4, 8) if packed else (8,), 8)
    wanted = _TYPES.get(form, kind)
    if kind != wanted:
        raise fields.refusal("type", f"{wanted}, as the format is {form}")
    symmetric = fields.flag("symmetric", default=True)
    size = fields.group_size("group_size") if "group_size" in fields else None
    default = "tensor" if "group_size" not in fields else "channel" if size is None else "group"
    strategies = ("group", "channel") if packed else ("tensor", "channel", "group")
    if kind == "float":
        strategies = ("tensor", "channel", "group", "block")
    strategy = fields.choice("strategy", strategies, default)
    if (strategy == "group") != (size is not None):
        raise fields.refusal("group_size", "above 0 for groups, and for nothing else")
    block = fields.block("block_structure") if strategy == "block" else None
    if strategy == "block" and block is None:
        raise fields.refusal("block_structure", "two whole numbers above 0, rows and columns")
    order = fields.value("actorder") or "none"
    if order not in ("none", "weight", "static", *_BY_INDEX):
        raise fields.refusal("actorder", "null, weight, static, group or dynamic")
    indexed = order in _BY_INDEX
    if indexed and not (packed and strategy == "group"):
        raise fields.refusal("actorder", f"null, weight or static, by {strategy} in {form}")
    if kind == "float":
        if not symmetric:
            raise fields.refusal("symmetric", "true")
        return Float8(strategy, size, block)
    if packed:
        return Packed(cast("Literal[4, 8]", bits), size, symmetric, indexed)
    return Int8(strategy, size, symmetric)


@dataclass(frozen=True)
class Group:
    targets: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True)
class Groups:
    """A module is in the group that names it, else that has an expression for it, else that has all
    linear modules."""

    groups: tuple[Group, ...]
    ignored: tuple[str, ...]

    def choose(self, module: str, matcher: Matcher) -> Choice:
        if matcher.is_named(_IGNORE, self.ignored, module):
            return Choice(None)
        named: list[list[Scheme]] = [[], [], []]
        for group in self.groups:
            if module in group.targets:
                named[0].append(group.scheme)
            elif matcher.is_named(_GROUPS, group.targets, module):
                named[1].append(group.scheme)
            elif _ANY_LINEAR in group.targets:
                named[2].append(group.scheme)
        found = next((each for each in named if each), [])
        if any(each != found[0] for each in found):
            raise unsupported(_GROUPS, f"two that both have {module}", "one for each module")
        return Choice(found[0] if found else None)
