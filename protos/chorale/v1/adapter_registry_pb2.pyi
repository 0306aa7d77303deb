import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MergeStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_STRATEGY_UNSPECIFIED: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_CAT: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_LINEAR: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_TIES: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_MAGNITUDE_PRUNE: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_DARE_LINEAR: _ClassVar[MergeStrategy]
    MERGE_STRATEGY_DARE_TIES: _ClassVar[MergeStrategy]

class MajoritySign(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MAJORITY_SIGN_UNSPECIFIED: _ClassVar[MajoritySign]
    MAJORITY_SIGN_TOTAL: _ClassVar[MajoritySign]
    MAJORITY_SIGN_FREQUENCY: _ClassVar[MajoritySign]
MERGE_STRATEGY_UNSPECIFIED: MergeStrategy
MERGE_STRATEGY_CAT: MergeStrategy
MERGE_STRATEGY_LINEAR: MergeStrategy
MERGE_STRATEGY_TIES: MergeStrategy
MERGE_STRATEGY_MAGNITUDE_PRUNE: MergeStrategy
MERGE_STRATEGY_DARE_LINEAR: MergeStrategy
MERGE_STRATEGY_DARE_TIES: MergeStrategy
MAJORITY_SIGN_UNSPECIFIED: MajoritySign
MAJORITY_SIGN_TOTAL: MajoritySign
MAJORITY_SIGN_FREQUENCY: MajoritySign

class Adapter(_message.Message):
    __slots__ = ("name", "current_version", "versions", "aliases")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    current_version: int
    versions: _containers.RepeatedCompositeFieldContainer[AdapterVersion]
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    def __init__(self, name: _Optional[str] = ..., current_version: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[AdapterVersion, _Mapping]]] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("version", "digest", "source", "base_model", "rank", "target_modules", "size_bytes", "created_at", "labels", "private", "merge", "invocation_tokens")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    source: str
    base_model: str
    rank: int
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    created_at: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    private: bool
    merge: Merge
    invocation_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., source: _Optional[str] = ..., base_model: _Optional[str] = ..., rank: _Optional[int] = ..., target_modules: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., private: _Optional[bool] = ..., merge: _Optional[_Union[Merge, _Mapping]] = ..., invocation_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Merge(_message.Message):
    __slots__ = ("strategy", "components", "density", "majority_sign", "seed")
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAJORITY_SIGN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    strategy: MergeStrategy
    components: _containers.RepeatedCompositeFieldContainer[MergedComponent]
    density: float
    majority_sign: MajoritySign
    seed: int
    def __init__(self, strategy: _Optional[_Union[MergeStrategy, str]] = ..., components: _Optional[_Iterable[_Union[MergedComponent, _Mapping]]] = ..., density: _Optional[float] = ..., majority_sign: _Optional[_Union[MajoritySign, str]] = ..., seed: _Optional[int] = ...) -> None: ...

class MergedComponent(_message.Message):
    __slots__ = ("adapter", "weight", "digest", "source")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    weight: float
    digest: str
    source: str
    def __init__(self, adapter: _Optional[str] = ..., weight: _Optional[float] = ..., digest: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("name", "adapter", "version", "targets")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    name: str
    adapter: str
    version: int
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    def __init__(self, name: _Optional[str] = ..., adapter: _Optional[str] = ..., version: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ...) -> None: ...

class AliasTarget(_message.Message):
    __slots__ = ("adapter", "version", "weight")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    version: int
    weight: int
    def __init__(self, adapter: _Optional[str] = ..., version: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...

class RegisterAdapterRequest(_message.Message):
    __slots__ = ("name", "source", "base_model", "labels", "must_be_new", "version", "expected_digest", "keep_current")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MUST_BE_NEW_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KEEP_CURRENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    base_model: str
    labels: _containers.ScalarMap[str, str]
    must_be_new: bool
    version: int
    expected_digest: str
    keep_current: bool
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., base_model: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., must_be_new: _Optional[bool] = ..., version: _Optional[int] = ..., expected_digest: _Optional[str] = ..., keep_current: _Optional[bool] = ...) -> None: ...

class RegisterAdapterResponse(_message.Message):
    __slots__ = ("adapter", "version", "created")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    version: AdapterVersion
    created: bool
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class MergeAdaptersRequest(_message.Message):
    __slots__ = ("name", "components", "strategy", "density", "majority_sign", "seed", "labels", "must_be_new", "keep_current")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAJORITY_SIGN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MUST_BE_NEW_FIELD_NUMBER: _ClassVar[int]
    KEEP_CURRENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    components: _containers.RepeatedCompositeFieldContainer[MergeComponent]
    strategy: MergeStrategy
    density: float
    majority_sign: MajoritySign
    seed: int
    labels: _containers.ScalarMap[str, str]
    must_be_new: bool
    keep_current: bool
    def __init__(self, name: _Optional[str] = ..., components: _Optional[_Iterable[_Union[MergeComponent, _Mapping]]] = ..., strategy: _Optional[_Union[MergeStrategy, str]] = ..., density: _Optional[float] = ..., majority_sign: _Optional[_Union[MajoritySign, str]] = ..., seed: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., must_be_new: _Optional[bool] = ..., keep_current: _Optional[bool] = ...) -> None: ...

class MergeComponent(_message.Message):
    __slots__ = ("adapter", "weight")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    weight: float
    def __init__(self, adapter: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class MergeAdaptersResponse(_message.Message):
    __slots__ = ("adapter", "version", "created")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    version: AdapterVersion
    created: bool
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., version: _Optional[_Union[AdapterVersion, _Mapping]] = ..., created: _Optional[bool] = ...) -> None: ...

class StreamRegisterAdapterRequest(_message.Message):
    __slots__ = ("register",)
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    register: RegisterAdapterRequest
    def __init__(self, register: _Optional[_Union[RegisterAdapterRequest, _Mapping]] = ...) -> None: ...

class StreamRegisterAdapterResponse(_message.Message):
    __slots__ = ("progress", "registered")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    progress: FileProgress
    registered: RegisterAdapterResponse
    def __init__(self, progress: _Optional[_Union[FileProgress, _Mapping]] = ..., registered: _Optional[_Union[RegisterAdapterResponse, _Mapping]] = ...) -> None: ...

class FileProgress(_message.Message):
    __slots__ = ("file", "received_bytes", "total_bytes")
    FILE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    file: str
    received_bytes: int
    total_bytes: int
    def __init__(self, file: _Optional[str] = ..., received_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("config", "weights_bytes", "weights_sha256")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    config: bytes
    weights_bytes: int
    weights_sha256: bytes
    def __init__(self, config: _Optional[bytes] = ..., weights_bytes: _Optional[int] = ..., weights_sha256: _Optional[bytes] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class UploadAdapterRequest(_message.Message):
    __slots__ = ("begin", "data")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    begin: UploadBegin
    data: bytes
    def __init__(self, begin: _Optional[_Union[UploadBegin, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadBegin(_message.Message):
    __slots__ = ("header", "offset")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    offset: int
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class UploadAdapterResponse(_message.Message):
    __slots__ = ("digest", "source")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    source: str
    def __init__(self, digest: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAdapterResponse(_message.Message):
    __slots__ = ("adapter", "resolved_version", "alias")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    resolved_version: int
    alias: Alias
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., resolved_version: _Optional[int] = ..., alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "base_model")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    base_model: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token", "total_size")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    total_size: int
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class PromoteAdapterRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class PromoteAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class RollbackAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class RemoveAdapterRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RemoveAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class RemoveAliasRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveAliasResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class VerifyAdapterResponse(_message.Message):
    __slots__ = ("matches", "registered_digest", "found_digest")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FOUND_DIGEST_FIELD_NUMBER: _ClassVar[int]
    matches: bool
    registered_digest: str
    found_digest: str
    def __init__(self, matches: _Optional[bool] = ..., registered_digest: _Optional[str] = ..., found_digest: _Optional[str] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("name", "fingerprint", "num_layers", "layer_modules", "outer_modules", "max_context_tokens", "vocab_size", "mixture_modules")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYER_MODULES_FIELD_NUMBER: _ClassVar[int]
    OUTER_MODULES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIXTURE_MODULES_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    num_layers: int
    layer_modules: _containers.RepeatedCompositeFieldContainer[ModuleShape]
    outer_modules: _containers.RepeatedCompositeFieldContainer[ModuleShape]
    max_context_tokens: int
    vocab_size: int
    mixture_modules: _containers.RepeatedCompositeFieldContainer[ModuleShape]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., num_layers: _Optional[int] = ..., layer_modules: _Optional[_Iterable[_Union[ModuleShape, _Mapping]]] = ..., outer_modules: _Optional[_Iterable[_Union[ModuleShape, _Mapping]]] = ..., max_context_tokens: _Optional[int] = ..., vocab_size: _Optional[int] = ..., mixture_modules: _Optional[_Iterable[_Union[ModuleShape, _Mapping]]] = ...) -> None: ...

class ModuleShape(_message.Message):
    __slots__ = ("module", "in_features", "out_features", "layers", "num_experts")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    module: str
    in_features: int
    out_features: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    num_experts: int
    def __init__(self, module: _Optional[str] = ..., in_features: _Optional[int] = ..., out_features: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., num_experts: _Optional[int] = ...) -> None: ...

class ListBaseModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBaseModelsResponse(_message.Message):
    __slots__ = ("base_models",)
    BASE_MODELS_FIELD_NUMBER: _ClassVar[int]
    base_models: _containers.RepeatedCompositeFieldContainer[BaseModel]
    def __init__(self, base_models: _Optional[_Iterable[_Union[BaseModel, _Mapping]]] = ...) -> None: ...
