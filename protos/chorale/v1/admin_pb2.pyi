from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PageOwnerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAGE_OWNER_KIND_UNSPECIFIED: _ClassVar[PageOwnerKind]
    PAGE_OWNER_KIND_FREE: _ClassVar[PageOwnerKind]
    PAGE_OWNER_KIND_ADAPTER: _ClassVar[PageOwnerKind]
    PAGE_OWNER_KIND_SEQUENCE: _ClassVar[PageOwnerKind]
    PAGE_OWNER_KIND_PREFIX: _ClassVar[PageOwnerKind]
PAGE_OWNER_KIND_UNSPECIFIED: PageOwnerKind
PAGE_OWNER_KIND_FREE: PageOwnerKind
PAGE_OWNER_KIND_ADAPTER: PageOwnerKind
PAGE_OWNER_KIND_SEQUENCE: PageOwnerKind
PAGE_OWNER_KIND_PREFIX: PageOwnerKind

class ListAdapterLoadsRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digests: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAdapterLoadsResponse(_message.Message):
    __slots__ = ("data_plane_id", "loads", "loading", "places")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    loads: _containers.RepeatedCompositeFieldContainer[AdapterLoad]
    loading: _containers.RepeatedCompositeFieldContainer[AdapterLoading]
    places: _containers.RepeatedCompositeFieldContainer[AdapterPlace]
    def __init__(self, data_plane_id: _Optional[str] = ..., loads: _Optional[_Iterable[_Union[AdapterLoad, _Mapping]]] = ..., loading: _Optional[_Iterable[_Union[AdapterLoading, _Mapping]]] = ..., places: _Optional[_Iterable[_Union[AdapterPlace, _Mapping]]] = ...) -> None: ...

class AdapterLoading(_message.Message):
    __slots__ = ("digest", "origin", "state", "received_bytes", "total_bytes", "bytes_per_s", "waited_s")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    digest: str
    origin: str
    state: str
    received_bytes: int
    total_bytes: int
    bytes_per_s: float
    waited_s: float
    def __init__(self, digest: _Optional[str] = ..., origin: _Optional[str] = ..., state: _Optional[str] = ..., received_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., waited_s: _Optional[float] = ...) -> None: ...

class AdapterPlace(_message.Message):
    __slots__ = ("digest", "in_pool", "in_host", "on_disk", "pin_waits_for")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    IN_POOL_FIELD_NUMBER: _ClassVar[int]
    IN_HOST_FIELD_NUMBER: _ClassVar[int]
    ON_DISK_FIELD_NUMBER: _ClassVar[int]
    PIN_WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    digest: str
    in_pool: bool
    in_host: bool
    on_disk: bool
    pin_waits_for: str
    def __init__(self, digest: _Optional[str] = ..., in_pool: _Optional[bool] = ..., in_host: _Optional[bool] = ..., on_disk: _Optional[bool] = ..., pin_waits_for: _Optional[str] = ...) -> None: ...

class AdapterLoad(_message.Message):
    __slots__ = ("digest", "tier", "size_bytes", "read_s", "parse_s", "build_s", "queue_s", "copy_s", "age_s", "origin", "reason", "message")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_S_FIELD_NUMBER: _ClassVar[int]
    BUILD_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COPY_S_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    tier: str
    size_bytes: int
    read_s: float
    parse_s: float
    build_s: float
    queue_s: float
    copy_s: float
    age_s: float
    origin: str
    reason: str
    message: str
    def __init__(self, digest: _Optional[str] = ..., tier: _Optional[str] = ..., size_bytes: _Optional[int] = ..., read_s: _Optional[float] = ..., parse_s: _Optional[float] = ..., build_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., copy_s: _Optional[float] = ..., age_s: _Optional[float] = ..., origin: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetPoolRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPoolResponse(_message.Message):
    __slots__ = ("data_plane_id", "num_pages", "page_bytes", "num_used_pages", "runs", "problem")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_PAGES_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    num_pages: int
    page_bytes: int
    num_used_pages: int
    runs: _containers.RepeatedCompositeFieldContainer[PageRun]
    problem: str
    def __init__(self, data_plane_id: _Optional[str] = ..., num_pages: _Optional[int] = ..., page_bytes: _Optional[int] = ..., num_used_pages: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[PageRun, _Mapping]]] = ..., problem: _Optional[str] = ...) -> None: ...

class PageRun(_message.Message):
    __slots__ = ("owner_kind", "owner_id", "first_page", "num_pages")
    OWNER_KIND_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    owner_kind: PageOwnerKind
    owner_id: str
    first_page: int
    num_pages: int
    def __init__(self, owner_kind: _Optional[_Union[PageOwnerKind, str]] = ..., owner_id: _Optional[str] = ..., first_page: _Optional[int] = ..., num_pages: _Optional[int] = ...) -> None: ...
