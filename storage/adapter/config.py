"""PEFT's adapter_config.json, read strictly: what cannot be applied exactly is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from storage.adapter.activation import read_invocation_tokens, refuse_unactivated
from storage.adapter.json_input import load_object
from storage.adapter.vocabulary import read_modules_to_save, read_trained_tokens
from storage.errors import AdapterTooLargeError, BadConfigError, UnsupportedFeatureError, excerpt
from storage.limits import DEFAULT_LIMITS, AdapterLimits

_MAX_DEPTH = 16
_MAX_MARKS = 1 << 17
_MAX_LIST_ITEMS = 4096
_MAX_STRING_CHARS = 4096
_MAX_ALPHA = 1e6

# These starts leave the base weights as they were, so B·A on the published base is exact.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# Fields read below, and fields that matter in training or to PEFT's own loading only.
_READ = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "layers_to_transform",
        "layers_pattern",
        "base_model_name_or_path",
        "bias",
        "init_lora_weights",
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
        "alora_invocation_tokens",
    }
)
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "lora_dropout",
        "task_type",
        # For transposed weights (Conv1D), which no base model here has: PEFT turns it off then.
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
        # Read by PEFT only under the init_lora_weights of their name, which is judged itself.
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        # Whether a runtime offloads to CPU; PEFT drops it on saving.
        "runtime_config",
    }
)
_WHY_NOT = {
    "layer_replication": "it changes the number of layers",
    "megatron_config": "Megatron modules are not supported",
    "use_qalora": "QALoRA pools its inputs",
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of a LoraConfig that decide what is computed.

    `target_modules`: a regex (matched whole), the word "all-linear", or names matched as suffixes;
    `exclude_modules` likewise. `target_parameters`: names of bare parameters, as of experts,
    matched as suffixes; nothing else of the config has a part in their choice. Patterns keep the
    file's order: the first that matches counts.
    bias: which base biases were trained along: "none", "lora_only" (those of the selected modules)
    or "all". lora_bias: each lora_B has a bias of its own. modules_to_save, trained_tokens: as
    storage.adapter.vocabulary reads them; no module is in both. ensure_weight_tying: what is done
    to the embedding holds for a tied head. invocation_tokens: of an activated LoRA
    (storage.adapter.activation), which applies from these on; empty: to all tokens.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: str | tuple[str, ...]
    target_parameters: tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    layers_to_transform: int | tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    base_model_name_or_path: str
    bias: str
    use_dora: bool
    lora_bias: bool
    modules_to_save: tuple[str, ...]
    trained_tokens: Mapping[str, tuple[int, ...]]
    ensure_weight_tying: bool
    invocation_tokens: tuple[int, ...]


def parse_config(data: bytes, *, limits: AdapterLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """Raises: BadConfigError, UnsupportedFeatureError, AdapterTooLargeError."""
    if len(data) > limits.max_config_bytes:
        raise AdapterTooLargeError(
            f"adapter_config.json has {len(data)} bytes; the limit is {limits.max_config_bytes}",
            metadata={"size_bytes": str(len(data)), "limit_bytes": str(limits.max_config_bytes)},
        )
    fields = load_object(
        bytes(data),
        what="adapter_config.json",
        max_depth=_MAX_DEPTH,
        max_marks=_MAX_MARKS,
        error=BadConfigError,
    )
    _refuse_unsupported(fields)
    targets = _names(fields, "target_modules")
    parameters = _names(fields, "target_parameters")
    if isinstance(parameters, str):
        raise BadConfigError(
            f"target_parameters must be a list of parameters' names, not {excerpt(parameters)}"
        )
    if not targets and not parameters:
        raise BadConfigError(
            "target_modules is missing or empty: name the modules that the adapter was trained on"
        )
    layers = _layer_indices(fields.get("layers_to_transform"))
    layers_pattern = _names(fields, "layers_pattern")
    if isinstance(layers_pattern, str):
        layers_pattern = (layers_pattern,) if layers_pattern else ()
    if isinstance(targets, str) and (layers is not None or layers_pattern):
        raise BadConfigError(
            "layers_to_transform and layers_pattern need target_modules to be a list of names, "
            f"not the string {excerpt(targets)}"
        )
    if layers_pattern and layers is None:
        raise BadConfigError("layers_pattern is set but layers_to_transform is not")
    saved = read_modules_to_save(fields.get("modules_to_save"))
    tokens = read_trained_tokens(fields.get("trainable_token_indices"))
    if both := sorted(tokens.keys() & set(saved)):
        raise BadConfigError(
            f"{both[0]} is in modules_to_save and in trainable_token_indices: PEFT takes one"
        )
    config = AdapterConfig(
        r=_rank("r", fields.get("r", 8), limits),
        lora_alpha=_alpha("lora_alpha", fields.get("lora_alpha", 8)),
        use_rslora=_flag(fields, "use_rslora"),
        target_modules=targets,
        target_parameters=parameters,
        exclude_modules=_names(fields, "exclude_modules"),
        rank_pattern={
            key: _rank(f"rank_pattern[{excerpt(key)}]", value, limits)
            for key, value in _pattern(fields, "rank_pattern").items()
        },
        alpha_pattern={
            key: _alpha(f"alpha_pattern[{excerpt(key)}]", value)
            for key, value in _pattern(fields, "alpha_pattern").items()
        },
        layers_to_transform=layers,
        layers_pattern=layers_pattern,
        base_model_name_or_path=_text(fields, "base_model_name_or_path"),
        bias=_bias(fields),
        use_dora=_flag(fields, "use_dora"),
        lora_bias=_flag(fields, "lora_bias"),
        modules_to_save=saved,
        trained_tokens=tokens,
        ensure_weight_tying=_flag(fields, "ensure_weight_tying"),
        invocation_tokens=read_invocation_tokens(fields),
    )
    refuse_unactivated(config, fields)
    return config


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    peft_type: object = fields.get("peft_type")
    if not isinstance(peft_type, str):
        raise BadConfigError(f'peft_type must be "LORA", not {excerpt(peft_type)}')
    if peft_type != "LORA":
        raise _unsupported("peft_type", peft_type, "only LORA adapters are served")
    if fields.get("use_dora") and fields.get("lora_bias"):
        raise _unsupported("lora_bias", True, "PEFT does not define it together with use_dora")
    init: object = fields.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool)) and not (
        isinstance(init, str) and init.lower() in _PLAIN_INITS
    ):
        raise _unsupported(
            "init_lora_weights",
            init,
            "that start alters the base weights; save the adapter converted to plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)",
        )
    for name, value in fields.items():
        if value and name not in _READ and name not in _HARMLESS:
            why = _WHY_NOT.get(name, "this server does not know how to apply it exactly")
            raise _unsupported(name, value, why)


def _unsupported(name: str, value: object, why: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        f"adapter_config.json: {excerpt(name)[1:-1]}={excerpt(value)} cannot be served: {why}",
        metadata={"field": name[:200]},
    )


def _rank(label: str, value: object, limits: AdapterLimits) -> int:
    top = min(limits.max_rank, 256)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= top:
        raise BadConfigError(f"{label} must be an integer from 1 to {top}, not {excerpt(value)}")
    return value


def _alpha(label: str, value: object) -> float:
    # Compared before converting: float() of a huge integer overflows.
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _MAX_ALPHA:
        raise BadConfigError(
            f"{label} must be a number of magnitude at most {_MAX_ALPHA:.0f}, not {excerpt(value)}"
        )
    return float(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value: object = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadConfigError(f"{name} must be true or false, not {excerpt(value)}")
    return bool(value)


def _bias(fields: Mapping[str, Any]) -> str:
    value: object = fields.get("bias")
    if value is None:
        return "none"
    if not isinstance(value, str) or value not in ("none", "all", "lora_only"):
        raise BadConfigError(f'bias must be "none", "all" or "lora_only", not {excerpt(value)}')
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value: object = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_STRING_CHARS:
        raise BadConfigError(
            f"{name} must be a string of at most {_MAX_STRING_CHARS} characters, "
            f"not {excerpt(value)}"
        )
    return value


def _names(fields: Mapping[str, Any], name: str) -> str | tuple[str, ...]:
    value: object = fields.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return _text(fields, name)
    items = cast("list[object]", value) if isinstance(value, list) else []
    names = tuple(
        item for item in items if isinstance(item, str) and 0 < len(item) <= _MAX_STRING_CHARS
    )
    if not isinstance(value, list) or len(names) != len(items) or len(items) > _MAX_LIST_ITEMS:
        raise BadConfigError(
            f"{name} must be a string or a list of at most {_MAX_LIST_ITEMS} non-empty strings, "
            f"not {excerpt(cast('object', value))}"
        )
    return names


def _pattern(fields: Mapping[str, Any], name: str) -> dict[str, object]:
    value: object = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(cast("dict[str, object]", value)) > _MAX_LIST_ITEMS:
        raise BadConfigError(
            f"{name} must be an object of at most {_MAX_LIST_ITEMS} entries, "
            f"not {excerpt(cast('object', value))}"
        )
    return cast("dict[str, object]", value)


def _layer_indices(value: object) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    indices = tuple(
        item
        for item in items
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 20
    )
    if len(indices) != len(items) or len(items) > _MAX_LIST_ITEMS:
        raise BadConfigError(
            "layers_to_transform must be a layer index or a list of them, "
            f"not {excerpt(cast('object', value))}"
        )
    return indices if isinstance(value, list) else indices[0]
