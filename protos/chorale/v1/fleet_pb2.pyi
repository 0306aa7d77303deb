import datetime

from chorale.v1 import adapter_registry_pb2 as _adapter_registry_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("lease", "heartbeat_interval", "ticket_keys")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TICKET_KEYS_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    heartbeat_interval: _duration_pb2.Duration
    ticket_keys: _containers.RepeatedCompositeFieldContainer[TicketKey]
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ticket_keys: _Optional[_Iterable[_Union[TicketKey, _Mapping]]] = ...) -> None: ...

class TicketKey(_message.Message):
    __slots__ = ("key_id", "key")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    key: bytes
    def __init__(self, key_id: _Optional[str] = ..., key: _Optional[bytes] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("num_running", "num_waiting", "max_running", "num_pages", "num_available_pages", "num_generated_tokens")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_AVAILABLE_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    max_running: int
    num_pages: int
    num_available_pages: int
    num_generated_tokens: int
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., max_running: _Optional[int] = ..., num_pages: _Optional[int] = ..., num_available_pages: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("data_plane_id", "incarnation", "load", "residency")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    incarnation: int
    load: Load
    residency: Residency
    def __init__(self, data_plane_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., residency: _Optional[_Union[Residency, _Mapping]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("ticket_keys",)
    TICKET_KEYS_FIELD_NUMBER: _ClassVar[int]
    ticket_keys: _containers.RepeatedCompositeFieldContainer[TicketKey]
    def __init__(self, ticket_keys: _Optional[_Iterable[_Union[TicketKey, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ()
    def __init__(self) -> None: ...

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
