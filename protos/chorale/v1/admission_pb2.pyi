import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdmitRequest(_message.Message):
    __slots__ = ("model", "tenant", "excluded_data_plane_ids", "prompt_size", "ttft_slo", "priority", "routing_key", "max_tokens", "continued_ticket", "prompt_prefixes", "ttft_path_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_DATA_PLANE_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SIZE_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTINUED_TICKET_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    TTFT_PATH_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    tenant: str
    excluded_data_plane_ids: _containers.RepeatedScalarFieldContainer[str]
    prompt_size: PromptSize
    ttft_slo: _duration_pb2.Duration
    priority: int
    routing_key: str
    max_tokens: int
    continued_ticket: bytes
    prompt_prefixes: PromptPrefixes
    ttft_path_s: float
    def __init__(self, model: _Optional[str] = ..., tenant: _Optional[str] = ..., excluded_data_plane_ids: _Optional[_Iterable[str]] = ..., prompt_size: _Optional[_Union[PromptSize, _Mapping]] = ..., ttft_slo: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[int] = ..., routing_key: _Optional[str] = ..., max_tokens: _Optional[int] = ..., continued_ticket: _Optional[bytes] = ..., prompt_prefixes: _Optional[_Union[PromptPrefixes, _Mapping]] = ..., ttft_path_s: _Optional[float] = ...) -> None: ...

class PromptPrefixes(_message.Message):
    __slots__ = ("hashes", "lengths")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hashes: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptSize(_message.Message):
    __slots__ = ("num_tokens", "num_characters", "num_generated_tokens")
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    num_characters: int
    num_generated_tokens: int
    def __init__(self, num_tokens: _Optional[int] = ..., num_characters: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ...) -> None: ...

class AdmitResponse(_message.Message):
    __slots__ = ("endpoint", "data_plane_id", "ticket", "expires_at", "model", "adapter_version", "adapter_digest")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    data_plane_id: str
    ticket: bytes
    expires_at: _timestamp_pb2.Timestamp
    model: str
    adapter_version: int
    adapter_digest: str
    def __init__(self, endpoint: _Optional[str] = ..., data_plane_id: _Optional[str] = ..., ticket: _Optional[bytes] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., adapter_version: _Optional[int] = ..., adapter_digest: _Optional[str] = ...) -> None: ...

class TicketClaims(_message.Message):
    __slots__ = ("ticket_id", "data_plane_id", "tenant", "base_model", "adapter_name", "adapter_version", "adapter_digest", "adapter_source", "expires_at", "max_priority", "adapter_source_token", "expected_ttft_s", "first_ticket_id", "charged_tokens", "counts_running", "tenant_prefixes", "adapter_invocation_tokens")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SOURCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MAX_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SOURCE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    CHARGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    TENANT_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_INVOCATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ticket_id: bytes
    data_plane_id: str
    tenant: str
    base_model: str
    adapter_name: str
    adapter_version: int
    adapter_digest: str
    adapter_source: str
    expires_at: _timestamp_pb2.Timestamp
    max_priority: int
    adapter_source_token: str
    expected_ttft_s: float
    first_ticket_id: bytes
    charged_tokens: int
    counts_running: bool
    tenant_prefixes: bool
    adapter_invocation_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ticket_id: _Optional[bytes] = ..., data_plane_id: _Optional[str] = ..., tenant: _Optional[str] = ..., base_model: _Optional[str] = ..., adapter_name: _Optional[str] = ..., adapter_version: _Optional[int] = ..., adapter_digest: _Optional[str] = ..., adapter_source: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., max_priority: _Optional[int] = ..., adapter_source_token: _Optional[str] = ..., expected_ttft_s: _Optional[float] = ..., first_ticket_id: _Optional[bytes] = ..., charged_tokens: _Optional[int] = ..., counts_running: _Optional[bool] = ..., tenant_prefixes: _Optional[bool] = ..., adapter_invocation_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class SignedTicket(_message.Message):
    __slots__ = ("claims", "signature", "key_id")
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    claims: bytes
    signature: bytes
    key_id: str
    def __init__(self, claims: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., key_id: _Optional[str] = ...) -> None: ...
