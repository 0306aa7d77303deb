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
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdapterLoadsResponse(_message.Message):
    __slots__ = ("data_plane_id", "loads")
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    data_plane_id: str
    loads: _containers.RepeatedCompositeFieldContainer[AdapterLoad]
    def __init__(self, data_plane_id: _Optional[str] = ..., loads: _Optional[_Iterable[_Union[AdapterLoad, _Mapping]]] = ...) -> None: ...

class AdapterLoad(_message.Message):
    __slots__ = ("digest", "tier", "size_bytes", "read_s", "parse_s", "build_s")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_S_FIELD_NUMBER: _ClassVar[int]
    BUILD_S_FIELD_NUMBER: _ClassVar[int]
    digest: str
    tier: str
    size_bytes: int
    read_s: float
    parse_s: float
    build_s: float
    def __init__(self, digest: _Optional[str] = ..., tier: _Optional[str] = ..., size_bytes: _Optional[int] = ..., read_s: _Optional[float] = ..., parse_s: _Optional[float] = ..., build_s: _Optional[float] = ...) -> None: ...

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
