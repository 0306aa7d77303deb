from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlobFile(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOB_FILE_UNSPECIFIED: _ClassVar[BlobFile]
    BLOB_FILE_CONFIG: _ClassVar[BlobFile]
    BLOB_FILE_WEIGHTS: _ClassVar[BlobFile]
BLOB_FILE_UNSPECIFIED: BlobFile
BLOB_FILE_CONFIG: BlobFile
BLOB_FILE_WEIGHTS: BlobFile

class FetchBlobRequest(_message.Message):
    __slots__ = ("digest", "file", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    file: BlobFile
    offset: int
    def __init__(self, digest: _Optional[str] = ..., file: _Optional[_Union[BlobFile, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchBlobResponse(_message.Message):
    __slots__ = ("data", "total_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    total_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., total_bytes: _Optional[int] = ...) -> None: ...
