import datetime

from chorale.v1 import adapter_registry_pb2 as _adapter_registry_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_ACTION_UNSPECIFIED: _ClassVar[AdapterAction]
    ADAPTER_ACTION_PREFETCH: _ClassVar[AdapterAction]
    ADAPTER_ACTION_PIN: _ClassVar[AdapterAction]
    ADAPTER_ACTION_UNPIN: _ClassVar[AdapterAction]
    ADAPTER_ACTION_UNLOAD: _ClassVar[AdapterAction]

class AdapterTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_TIER_UNSPECIFIED: _ClassVar[AdapterTier]
    ADAPTER_TIER_HOST: _ClassVar[AdapterTier]
    ADAPTER_TIER_POOL: _ClassVar[AdapterTier]

class PredictionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREDICTION_KIND_UNSPECIFIED: _ClassVar[PredictionKind]
    PREDICTION_KIND_FOLLOW: _ClassVar[PredictionKind]
    PREDICTION_KIND_WARM_UP: _ClassVar[PredictionKind]
    PREDICTION_KIND_RATE: _ClassVar[PredictionKind]
ADAPTER_ACTION_UNSPECIFIED: AdapterAction
ADAPTER_ACTION_PREFETCH: AdapterAction
ADAPTER_ACTION_PIN: AdapterAction
ADAPTER_ACTION_UNPIN: AdapterAction
ADAPTER_ACTION_UNLOAD: AdapterAction
ADAPTER_TIER_UNSPECIFIED: AdapterTier
ADAPTER_TIER_HOST: AdapterTier
ADAPTER_TIER_POOL: AdapterTier
PREDICTION_KIND_UNSPECIFIED: PredictionKind
PREDICTION_KIND_FOLLOW: PredictionKind
PREDICTION_KIND_WARM_UP: PredictionKind
PREDICTION_KIND_RATE: PredictionKind

class JoinRequest(_message.Message):
    __slots__ = ("data_plane_id", "incarnation", "endpoint", "base_model")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    incarnation: int
    endpoint: str
    base_model: _adapter_registry_pb2.BaseModel
    def __init__(self, data_plane_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., endpoint: _Optional[str] = ..., base_model: _Optional[_Union[_adapter_registry_pb2.BaseModel, _Mapping]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("lease", "heartbeat_interval", "ticket_keys", "now")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TICKET_KEYS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    heartbeat_interval: _duration_pb2.Duration
    ticket_keys: _containers.RepeatedCompositeFieldContainer[TicketKey]
    now: _timestamp_pb2.Timestamp
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ticket_keys: _Optional[_Iterable[_Union[TicketKey, _Mapping]]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TicketKey(_message.Message):
    __slots__ = ("key_id", "key")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    key: bytes
    def __init__(self, key_id: _Optional[str] = ..., key: _Optional[bytes] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("num_running", "num_waiting", "max_running", "num_pages", "num_available_pages", "num_generated_tokens", "prefetches", "tiers", "num_loading", "num_waiting_pins", "load_counts", "outlook", "ttft_slo_s", "characters_per_token", "path_s")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_AVAILABLE_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOADING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_PINS_FIELD_NUMBER: _ClassVar[int]
    LOAD_COUNTS_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_S_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PATH_S_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    max_running: int
    num_pages: int
    num_available_pages: int
    num_generated_tokens: int
    prefetches: Prefetches
    tiers: _containers.RepeatedCompositeFieldContainer[TierCounters]
    num_loading: int
    num_waiting_pins: int
    load_counts: _containers.RepeatedCompositeFieldContainer[LoadCount]
    outlook: Outlook
    ttft_slo_s: float
    characters_per_token: float
    path_s: float
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., max_running: _Optional[int] = ..., num_pages: _Optional[int] = ..., num_available_pages: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., prefetches: _Optional[_Union[Prefetches, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierCounters, _Mapping]]] = ..., num_loading: _Optional[int] = ..., num_waiting_pins: _Optional[int] = ..., load_counts: _Optional[_Iterable[_Union[LoadCount, _Mapping]]] = ..., outlook: _Optional[_Union[Outlook, _Mapping]] = ..., ttft_slo_s: _Optional[float] = ..., characters_per_token: _Optional[float] = ..., path_s: _Optional[float] = ...) -> None: ...

class Outlook(_message.Message):
    __slots__ = ("behind_running_s", "waits", "num_open", "request_s", "request_prefill_s", "decode_step_s", "prefill_step_s", "prefill_token_s", "max_batch_tokens", "computed_share", "tier_costs", "cached_for_s")
    BEHIND_RUNNING_S_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    NUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_STEP_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_SHARE_FIELD_NUMBER: _ClassVar[int]
    TIER_COSTS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FOR_S_FIELD_NUMBER: _ClassVar[int]
    behind_running_s: float
    waits: _containers.RepeatedCompositeFieldContainer[ExpectedWait]
    num_open: int
    request_s: float
    request_prefill_s: float
    decode_step_s: float
    prefill_step_s: float
    prefill_token_s: float
    max_batch_tokens: int
    computed_share: float
    tier_costs: _containers.RepeatedCompositeFieldContainer[TierCost]
    cached_for_s: float
    def __init__(self, behind_running_s: _Optional[float] = ..., waits: _Optional[_Iterable[_Union[ExpectedWait, _Mapping]]] = ..., num_open: _Optional[int] = ..., request_s: _Optional[float] = ..., request_prefill_s: _Optional[float] = ..., decode_step_s: _Optional[float] = ..., prefill_step_s: _Optional[float] = ..., prefill_token_s: _Optional[float] = ..., max_batch_tokens: _Optional[int] = ..., computed_share: _Optional[float] = ..., tier_costs: _Optional[_Iterable[_Union[TierCost, _Mapping]]] = ..., cached_for_s: _Optional[float] = ...) -> None: ...

class ExpectedWait(_message.Message):
    __slots__ = ("priority", "wait_s")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    priority: int
    wait_s: float
    def __init__(self, priority: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class TierCost(_message.Message):
    __slots__ = ("tier", "fixed_s", "byte_s")
    TIER_FIELD_NUMBER: _ClassVar[int]
    FIXED_S_FIELD_NUMBER: _ClassVar[int]
    BYTE_S_FIELD_NUMBER: _ClassVar[int]
    tier: str
    fixed_s: float
    byte_s: float
    def __init__(self, tier: _Optional[str] = ..., fixed_s: _Optional[float] = ..., byte_s: _Optional[float] = ...) -> None: ...

class TierCounters(_message.Message):
    __slots__ = ("tier", "num_adapters", "size_bytes", "max_bytes", "num_hits", "num_misses", "num_evictions", "num_damaged")
    TIER_FIELD_NUMBER: _ClassVar[int]
    NUM_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSES_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    tier: str
    num_adapters: int
    size_bytes: int
    max_bytes: int
    num_hits: int
    num_misses: int
    num_evictions: int
    num_damaged: int
    def __init__(self, tier: _Optional[str] = ..., num_adapters: _Optional[int] = ..., size_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., num_hits: _Optional[int] = ..., num_misses: _Optional[int] = ..., num_evictions: _Optional[int] = ..., num_damaged: _Optional[int] = ...) -> None: ...

class LoadCount(_message.Message):
    __slots__ = ("origin", "outcome", "num_loads", "size_bytes", "queue_s", "read_s", "parse_s", "build_s")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    NUM_LOADS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_S_FIELD_NUMBER: _ClassVar[int]
    BUILD_S_FIELD_NUMBER: _ClassVar[int]
    origin: str
    outcome: str
    num_loads: int
    size_bytes: int
    queue_s: float
    read_s: float
    parse_s: float
    build_s: float
    def __init__(self, origin: _Optional[str] = ..., outcome: _Optional[str] = ..., num_loads: _Optional[int] = ..., size_bytes: _Optional[int] = ..., queue_s: _Optional[float] = ..., read_s: _Optional[float] = ..., parse_s: _Optional[float] = ..., build_s: _Optional[float] = ...) -> None: ...

class Prefetches(_message.Message):
    __slots__ = ("num_hits", "num_late", "late", "wasted_bytes", "num_failed", "num_refused", "num_asked")
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_LATE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    WASTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_ASKED_FIELD_NUMBER: _ClassVar[int]
    num_hits: int
    num_late: int
    late: _duration_pb2.Duration
    wasted_bytes: int
    num_failed: int
    num_refused: int
    num_asked: int
    def __init__(self, num_hits: _Optional[int] = ..., num_late: _Optional[int] = ..., late: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., wasted_bytes: _Optional[int] = ..., num_failed: _Optional[int] = ..., num_refused: _Optional[int] = ..., num_asked: _Optional[int] = ...) -> None: ...

class Residency(_message.Message):
    __slots__ = ("pool_digests", "host_digests", "disk_digests")
    POOL_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    HOST_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    DISK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    pool_digests: _containers.RepeatedScalarFieldContainer[str]
    host_digests: _containers.RepeatedScalarFieldContainer[str]
    disk_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pool_digests: _Optional[_Iterable[str]] = ..., host_digests: _Optional[_Iterable[str]] = ..., disk_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("data_plane_id", "incarnation", "load", "residency", "received_directives", "settlement")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_DIRECTIVES_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    incarnation: int
    load: Load
    residency: Residency
    received_directives: int
    settlement: Settlement
    def __init__(self, data_plane_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., residency: _Optional[_Union[Residency, _Mapping]] = ..., received_directives: _Optional[int] = ..., settlement: _Optional[_Union[Settlement, _Mapping]] = ...) -> None: ...

class Settlement(_message.Message):
    __slots__ = ("number", "unused")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    number: int
    unused: _containers.RepeatedCompositeFieldContainer[TenantTokens]
    def __init__(self, number: _Optional[int] = ..., unused: _Optional[_Iterable[_Union[TenantTokens, _Mapping]]] = ...) -> None: ...

class TenantTokens(_message.Message):
    __slots__ = ("tenant", "num_tokens")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    num_tokens: int
    def __init__(self, tenant: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class ReportGenerationsRequest(_message.Message):
    __slots__ = ("generations",)
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[GenerationReport]
    def __init__(self, generations: _Optional[_Iterable[_Union[GenerationReport, _Mapping]]] = ...) -> None: ...

class GenerationReport(_message.Message):
    __slots__ = ("tenant", "first_ticket_id", "ticket_id", "has_ended")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    HAS_ENDED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    first_ticket_id: bytes
    ticket_id: bytes
    has_ended: bool
    def __init__(self, tenant: _Optional[str] = ..., first_ticket_id: _Optional[bytes] = ..., ticket_id: _Optional[bytes] = ..., has_ended: _Optional[bool] = ...) -> None: ...

class ReportGenerationsResponse(_message.Message):
    __slots__ = ("holds",)
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    holds: _duration_pb2.Duration
    def __init__(self, holds: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("ticket_keys", "directives", "now")
    TICKET_KEYS_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVES_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    ticket_keys: _containers.RepeatedCompositeFieldContainer[TicketKey]
    directives: _containers.RepeatedCompositeFieldContainer[Directive]
    now: _timestamp_pb2.Timestamp
    def __init__(self, ticket_keys: _Optional[_Iterable[_Union[TicketKey, _Mapping]]] = ..., directives: _Optional[_Iterable[_Union[Directive, _Mapping]]] = ..., now: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("sequence", "action", "digest", "source", "name", "tier", "within")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    action: AdapterAction
    digest: str
    source: str
    name: str
    tier: AdapterTier
    within: _duration_pb2.Duration
    def __init__(self, sequence: _Optional[int] = ..., action: _Optional[_Union[AdapterAction, str]] = ..., digest: _Optional[str] = ..., source: _Optional[str] = ..., name: _Optional[str] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DirectAdapterRequest(_message.Message):
    __slots__ = ("name", "action", "tier", "within", "data_plane_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: AdapterAction
    tier: AdapterTier
    within: _duration_pb2.Duration
    data_plane_id: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[AdapterAction, str]] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., data_plane_id: _Optional[str] = ...) -> None: ...

class DirectAdapterResponse(_message.Message):
    __slots__ = ("data_plane_ids", "adapter")
    DATA_PLANE_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    data_plane_ids: _containers.RepeatedScalarFieldContainer[str]
    adapter: str
    def __init__(self, data_plane_ids: _Optional[_Iterable[str]] = ..., adapter: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("data_plane_id", "incarnation")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    incarnation: int
    def __init__(self, data_plane_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDataPlanesRequest(_message.Message):
    __slots__ = ("without_residency",)
    WITHOUT_RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    without_residency: bool
    def __init__(self, without_residency: _Optional[bool] = ...) -> None: ...

class ListDataPlanesResponse(_message.Message):
    __slots__ = ("data_planes",)
    DATA_PLANES_FIELD_NUMBER: _ClassVar[int]
    data_planes: _containers.RepeatedCompositeFieldContainer[DataPlane]
    def __init__(self, data_planes: _Optional[_Iterable[_Union[DataPlane, _Mapping]]] = ...) -> None: ...

class DataPlane(_message.Message):
    __slots__ = ("data_plane_id", "incarnation", "endpoint", "base_model", "load", "residency", "last_heartbeat_at")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_AT_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    incarnation: int
    endpoint: str
    base_model: str
    load: Load
    residency: Residency
    last_heartbeat_at: _timestamp_pb2.Timestamp
    def __init__(self, data_plane_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., endpoint: _Optional[str] = ..., base_model: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., residency: _Optional[_Union[Residency, _Mapping]] = ..., last_heartbeat_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListDemandRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListDemandResponse(_message.Message):
    __slots__ = ("predicting", "adapters", "predictions", "scores")
    PREDICTING_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    predicting: bool
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterDemand]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    scores: _containers.RepeatedCompositeFieldContainer[PredictionScore]
    def __init__(self, predicting: _Optional[bool] = ..., adapters: _Optional[_Iterable[_Union[AdapterDemand, _Mapping]]] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[PredictionScore, _Mapping]]] = ...) -> None: ...

class AdapterDemand(_message.Message):
    __slots__ = ("digest", "base_model", "name", "rates", "followers")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    FOLLOWERS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    base_model: str
    name: str
    rates: _containers.RepeatedCompositeFieldContainer[RequestRate]
    followers: _containers.RepeatedCompositeFieldContainer[Follower]
    def __init__(self, digest: _Optional[str] = ..., base_model: _Optional[str] = ..., name: _Optional[str] = ..., rates: _Optional[_Iterable[_Union[RequestRate, _Mapping]]] = ..., followers: _Optional[_Iterable[_Union[Follower, _Mapping]]] = ...) -> None: ...

class RequestRate(_message.Message):
    __slots__ = ("half_life", "requests_per_s")
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    half_life: _duration_pb2.Duration
    requests_per_s: float
    def __init__(self, half_life: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., requests_per_s: _Optional[float] = ...) -> None: ...

class Follower(_message.Message):
    __slots__ = ("digest", "name", "share")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    share: float
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("data_plane_id", "digest", "name", "kind", "tier", "size_bytes", "age", "left", "hit")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    HIT_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    digest: str
    name: str
    kind: PredictionKind
    tier: AdapterTier
    size_bytes: int
    age: _duration_pb2.Duration
    left: _duration_pb2.Duration
    hit: bool
    def __init__(self, data_plane_id: _Optional[str] = ..., digest: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[_Union[PredictionKind, str]] = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., size_bytes: _Optional[int] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hit: _Optional[bool] = ...) -> None: ...

class PredictionScore(_message.Message):
    __slots__ = ("kind", "num_made", "num_hits", "num_misses", "asked_bytes", "precision", "num_late")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_MADE_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSES_FIELD_NUMBER: _ClassVar[int]
    ASKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    NUM_LATE_FIELD_NUMBER: _ClassVar[int]
    kind: PredictionKind
    num_made: int
    num_hits: int
    num_misses: int
    asked_bytes: int
    precision: float
    num_late: int
    def __init__(self, kind: _Optional[_Union[PredictionKind, str]] = ..., num_made: _Optional[int] = ..., num_hits: _Optional[int] = ..., num_misses: _Optional[int] = ..., asked_bytes: _Optional[int] = ..., precision: _Optional[float] = ..., num_late: _Optional[int] = ...) -> None: ...
