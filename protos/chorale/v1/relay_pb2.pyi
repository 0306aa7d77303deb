from chorale.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RelayRequest(_message.Message):
    __slots__ = ("handle", "start", "end", "num_taken")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NUM_TAKEN_FIELD_NUMBER: _ClassVar[int]
    handle: int
    start: GenerationStart
    end: GenerationEnd
    num_taken: int
    def __init__(self, handle: _Optional[int] = ..., start: _Optional[_Union[GenerationStart, _Mapping]] = ..., end: _Optional[_Union[GenerationEnd, _Mapping]] = ..., num_taken: _Optional[int] = ...) -> None: ...

class GenerationStart(_message.Message):
    __slots__ = ("request", "timeout_s")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.GenerateRequest
    timeout_s: float
    def __init__(self, request: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class GenerationEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RelayResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RelayEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[RelayEvent, _Mapping]]] = ...) -> None: ...

class RelayEvent(_message.Message):
    __slots__ = ("handle", "response", "failure")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    response: _inference_pb2.GenerateResponse
    failure: bytes
    def __init__(self, handle: _Optional[int] = ..., response: _Optional[_Union[_inference_pb2.GenerateResponse, _Mapping]] = ..., failure: _Optional[bytes] = ...) -> None: ...
