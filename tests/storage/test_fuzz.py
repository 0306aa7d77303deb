"""Whatever the bytes, nothing but a StorageError comes out."""

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.adapter.config import parse_config
from storage.adapter.manifest import parse_adapter
from storage.adapter.match import check_base
from storage.adapter.weights import parse_header
from storage.errors import StorageError
from tests.storage.samples import SPEC, config, lora_tensors, safetensors, with_header

SOUND = safetensors(lora_tensors())
FIELDS: dict[str, Any] = json.loads(config())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
field_names = st.sampled_from(
    [
        *FIELDS,
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "bias",
        "use_dora",
        "lora_bias",
    ]
)


@given(st.binary(max_size=200))
def test_any_config_bytes(data: bytes) -> None:
    with contextlib.suppress(StorageError):
        parse_config(data)


@settings(max_examples=150)
@given(st.dictionaries(field_names, json_values, max_size=4))
def test_any_config_values(changes: dict[str, Any]) -> None:
    data = json.dumps({**FIELDS, **changes}).encode()
    with contextlib.suppress(StorageError):
        check_base(parse_adapter(data, SOUND).manifest, SPEC, explicit_base=True)


@given(st.binary(max_size=300))
def test_any_weight_bytes(data: bytes) -> None:
    with contextlib.suppress(StorageError):
        parse_header(data)


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_any_header_bytes(header: bytes, body: bytes) -> None:
    with contextlib.suppress(StorageError):
        parse_header(with_header(header, body))


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from([*lora_tensors(), "__metadata__", "x"]),
        json_values
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]),
                "shape": st.lists(st.integers(-1, 5), max_size=3),
                "data_offsets": st.lists(st.integers(0, 60), min_size=2, max_size=2),
            }
        ),
        max_size=4,
    ),
    st.binary(max_size=60),
)
def test_any_header_values(entries: dict[str, Any], body: bytes) -> None:
    weights = with_header(json.dumps(entries).encode(), body)
    with contextlib.suppress(StorageError):
        check_base(parse_adapter(config(), weights).manifest, SPEC)


@settings(max_examples=150)
@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255), st.integers(0, len(SOUND)))
def test_a_sound_file_damaged_anywhere(place: int, change: int, length: int) -> None:
    damaged = bytearray(SOUND)
    damaged[place] ^= change
    for data in (bytes(damaged), bytes(damaged[:length]), SOUND[:length]):
        with contextlib.suppress(StorageError):
            check_base(parse_adapter(config(), data).manifest, SPEC)


@given(st.integers(0, len(SOUND) - 1))
def test_truncation_is_always_noticed(length: int) -> None:
    try:
        parse_adapter(config(), SOUND[:length])
    except StorageError:
        return
    raise AssertionError(f"a file cut at {length} was accepted")
